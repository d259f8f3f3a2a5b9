//! Disk plugin: writes replicated as they happen, applied by epoch.

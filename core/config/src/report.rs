//! What is wrong with a configuration, shown with its place: file, line, column and an excerpt.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, normalize_untrusted_str};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Why a configuration could not be loaded. The text is made for a terminal and needs nothing before it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// Nothing is there.
    #[error("There is no configuration file {}", .0.display())]
    Missing(PathBuf),
    /// A directory is there.
    #[error("{} is a directory; name a configuration file in it", .0.display())]
    Directory(PathBuf),
    /// It cannot be read.
    #[error("Could not read the configuration file {}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be a configuration.
    #[error("{} is larger than {} KiB, the most a configuration may be", file.display(), limit >> 10)]
    TooLarge {
        /// Which file.
        file: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// It is not text.
    #[error("{}:{line}:{column}: byte 0x{byte:02x} is not UTF-8; a configuration is UTF-8 text", file.display())]
    NotUtf8 {
        /// Which file.
        file: PathBuf,
        /// Line of the first bad byte, from 1.
        line: usize,
        /// Its column in characters, from 1.
        column: usize,
        /// The bad byte.
        byte: u8,
    },
    /// Its contents are wrong.
    #[error("{0}")]
    Invalid(Report),
}

/// Everything found wrong in one file, in the order of the file. Its `Display` is one excerpt for each problem.
#[derive(Debug)]
pub struct Report {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

/// A piece of the file and a word about it.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) span: Range<usize>,
    pub(crate) label: String,
}

/// One thing that is wrong.
#[derive(Debug)]
pub(crate) struct Problem {
    title: String,
    at: Option<Note>,
    beside: Option<Note>,
    help: Vec<String>,
}

impl Problem {
    /// A problem of the file as a whole.
    pub(crate) fn new(title: impl Into<String>) -> Problem {
        Problem { title: title.into(), at: None, beside: None, help: Vec::new() }
    }

    /// Where it is.
    pub(crate) fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Problem {
        self.at = Some(Note { span, label: label.into() });
        self
    }

    /// Another place that has to do with it.
    pub(crate) fn beside(mut self, span: Range<usize>, label: impl Into<String>) -> Problem {
        self.beside = Some(Note { span, label: label.into() });
        self
    }

    /// What to do about it, or why it is needed.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Problem {
        self.help.push(text.into());
        self
    }
}

impl Report {
    pub(crate) fn new(file: String, text: &str, mut problems: Vec<Problem>) -> Report {
        problems.sort_by_key(|p| p.at.as_ref().map_or(usize::MAX, |n| n.span.start));
        Report { file, text: text.to_owned(), problems }
    }

    /// How many problems there are; at least one.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let group = Level::ERROR.primary_title(problem.title.as_str());
        let group = match &problem.at {
            Some(note) => {
                let place = |kind: AnnotationKind, n: &'a Note| {
                    kind.span(one_line(&self.text, &n.span)).label(printable(&n.label))
                };
                let snippet = Snippet::source(self.text.as_str()).path(self.file.as_str());
                group.element(
                    snippet
                        .annotation(place(AnnotationKind::Primary, note))
                        .annotations(problem.beside.iter().map(|n| place(AnnotationKind::Context, n))),
                )
            }
            None => group.element(Origin::path(self.file.as_str())),
        };
        group.elements(problem.help.iter().map(|text| Level::HELP.message(printable(text))))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{}\n", without_controls(&Renderer::plain().render(&[self.group(problem)])))?;
        }
        let (file, count) = (&self.file, self.count());
        write!(f, "{file} is not valid: {count} {}", if count == 1 { "problem" } else { "problems" })
    }
}

/// Without control characters, which a hostile file could use to talk to the terminal.
fn printable(text: &str) -> String {
    normalize_untrusted_str(text)
}

/// The excerpts come with what replaces C0 control characters; those of C1, such as U+009B, are as good to a terminal.
fn without_controls(shown: &str) -> String {
    let replaced = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    shown.chars().map(replaced).collect()
}

/// The part of a span that lies on its first line, on character borders and inside the text.
fn one_line(text: &str, span: &Range<usize>) -> Range<usize> {
    let border = |at: usize| (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    let start = border(span.start);
    let end = border(span.end).max(start);
    let line = text[start..end].find(['\n', '\r']).map_or(end, |n| start + n);
    start..line
}

#!/bin/sh
# PID 1 of the guest: drivers, address=ADDR/LEN from the kernel's command line, then Redis. When Redis ends, or the power
# button is pressed, the machine goes off. The disk's program is there in the tests' image only.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules
for word in $(cat /proc/cmdline); do
    case $word in address=*) ip addr add "${word#*=}" dev eth0 ;; esac
done
ip link set lo up
ip link set eth0 up
acpid -l /dev/null
[ ! -x /bin/guest-workload ] || guest-workload /dev/vda &
redis-server --bind 0.0.0.0 --protected-mode no --save "" --appendonly no --always-show-logo no --loglevel warning
poweroff -f

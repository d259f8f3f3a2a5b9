#!/bin/sh
# PID 1 of a lab host until it is told who it is. Up to the word "ready" is what a saved state holds. What follows is read
# from the port that the word went to: number, time, the agent's file, the directory with the kernel's modules.
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </modules
ip link set lo up
until set -- /dev/vport*p1; [ -c "$1" ]; do sleep 0.02; done
exec 3<>"$1"
echo ready >&3
read -r number time <&3
read -r agent <&3
read -r modules <&3

date -s "@$time" >/dev/null
hostname "lab$number"
ip link set eth0 address "52:54:00:1a:b0:0$number"
ip addr add "10.9.0.1$number/24" dev eth0
ip link set eth0 up

# Over the files of the machine that this one runs on, what is written here stays here.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host
mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work overlay /new
mkdir -p /new/lib/modules
mount --bind "/host$modules" /new/lib/modules
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts pts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t tmpfs run /new/run
# The agent is not PID 1, which has to wait for the processes that others leave behind.
exec switch_root /new /bin/sh -c '"$0" <&3 >&3 2>/dev/console 3<&-; exit' "$agent"

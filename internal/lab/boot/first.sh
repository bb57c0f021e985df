#!/bin/busybox sh
# The first program of a VM host: finds the disk that the root is on, and goes on there.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module"; done </order
$b mount -t ext4 -o ro,noload /dev/vda /root
$b umount /dev
exec $b switch_root /root /lab-boot

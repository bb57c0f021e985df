#!/bin/sh
# Makes what a VM host boots from, in the directory $2: vmlinuz, initrd and root.img, of the root file system $1 and the
# kernel package unpacked in $2/kernel. $3 and $4 are the programs that start first, of the initrd and of the root.
set -eu
root=$1 out=$2 first=$3 second=$4
cd "$out"
kernel=$(echo kernel/boot/vmlinuz-*)
version=${kernel#kernel/boot/vmlinuz-}
cp "$kernel" vmlinuz

cp -al "$root" tree
rm -rf tree/usr/lib/modules
mkdir -p tree/usr/lib/modules tree/lab
mv "kernel/usr/lib/modules/$version" tree/usr/lib/modules/
chroot tree depmod "$version"
printf '%s' "$second" >tree/lab-boot

mkdir -p initrd/bin initrd/modules initrd/root initrd/dev initrd/proc
cp tree/bin/busybox initrd/bin/
printf '%s' "$first" >initrd/init
chmod 755 initrd/init tree/lab-boot
for wanted in virtio_blk ext4; do
	chroot tree modprobe -S "$version" -D "$wanted"
done | while read -r _ module _; do
	name=$(basename "$module" .xz)
	[ -e "initrd/modules/$name" ] || echo "$name" >>initrd/order
	xz -dc "tree$module" >"initrd/modules/$name"
done
(cd initrd && find . | bin/busybox cpio -o -H newc) 2>/dev/null | gzip -1 >initrd.gz
mke2fs -q -F -t ext4 -O ^has_journal -b 4096 -m 0 -d tree root.img 2G
rm -rf kernel tree initrd

#!/bin/sh
# Runs in every VM host up to the point at which its state was saved; then, as PID 1 of a copy, once that is told its name.
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
# What hosts need anyway, and what is slow to load in an emulated machine.
modprobe -a virtio_net 9pnet_virtio 9p overlay btrfs loop tun fuse veth bridge vxlan wireguard sch_tbf sch_netem ifb \
	nf_tables nft_ct nft_nat nft_masq nft_chain_nat nft_numgen nft_fib_inet nft_limit nft_log nft_reject_inet nft_redir \
	unix_diag tcp_diag udp_diag inet_diag packet_diag netlink_diag || echo 'some modules are missing'
echo 3 >/proc/sys/vm/drop_caches
stty -F /dev/hvc0 -echo
echo ready >/dev/hvc0
read -r name </dev/hvc0
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=readahead lab /lab
exec /lab/bin/polder lab become "$name"
echo "cannot run /lab/bin/polder"

package container

import "strings"

// ordinary are the system calls that every process may use. Names that a host's libseccomp does not know are skipped by
// crun. What is in no list here answers ENOSYS, as if the kernel were older: programs fall back by themselves. Left out
// because a container has no business there: kernel modules, kexec, swap, the clock, I/O ports, key rings (they are not
// per user namespace in all respects), process accounting, userfaultfd, handles that open files outside the root, and
// what the kernel itself has dropped.
func ordinary() []string {
	return strings.Fields(`
		_llseek _newselect accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod
		chown chown32 chroot clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
		clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
		epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve
		execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat
		fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock
		fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftime ftruncate ftruncate64 futex
		futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_mempolicy get_robust_list
		get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
		getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
		getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32
		getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
		io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill lchown lchown32
		lgetxattr link linkat listen listmount listns listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules lstat lstat64
		madvise map_shadow_stack mbind membarrier memfd_create memfd_secret migrate_pages mincore mkdir mkdirat mknod
		mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt move_pages mprotect mq_getsetattr mq_notify mq_open
		mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv
		msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat nice oldfstat oldlstat oldolduname
		oldstat olduname open openat openat2 pause personality pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
		pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
		process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readdir readlink
		readlinkat readv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
		renameat renameat2 restart_syscall rmdir rseq rseq_slice_yield rt_sigaction rt_sigpending rt_sigprocmask
		rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
		sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
		sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
		sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 sendfile sendfile64
		sendmmsg sendmsg sendto set_mempolicy set_mempolicy_home_node set_robust_list set_thread_area set_tid_address
		setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
		setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt
		setuid setuid32 setxattr setxattrat sgetmask shmat shmctl shmdt shmget shutdown sigaction sigaltstack signal
		signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend socketcall socketpair splice ssetmask stat stat64
		statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
		timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
		timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit
		umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid
		write writev`)
}

// administration are the system calls of whoever runs a whole system: mounting, namespaces, quota, tracing. A system
// container's root may use them within its own namespaces; an application has no need.
func administration() []string {
	return strings.Fields(`
		bpf fanotify_init fsconfig fsmount fsopen fspick kcmp mount mount_setattr move_mount open_tree open_tree_attr
		perf_event_open pidfd_getfd pivot_root process_madvise quotactl quotactl_fd reboot setdomainname sethostname setns
		syslog umount umount2 vhangup`)
}

// refusedForMoving are left out although harmless, because a live move cannot carry what they make (see seccomp).
func refusedForMoving() []string {
	return []string{
		"io_uring_enter", "io_uring_register", "io_uring_setup", "clone3",
		"landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
	}
}

// forbidden are refused with EPERM rather than ENOSYS: programs that find them missing would take the kernel for
// broken, but all cope with not being allowed.
func forbidden() []string {
	return strings.Fields(`
		acct add_key clock_settime clock_settime64 delete_module finit_module init_module ioperm iopl kexec_file_load
		kexec_load keyctl lsm_set_self_attr open_by_handle_at request_key settimeofday stime swapoff swapon userfaultfd`)
}

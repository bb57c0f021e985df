# A process that holds memory and does nothing else: `holder MIB`. It fills MIB mebibytes with numbers that don't repeat, and
# pauses for ever. One thread, no library: what a move of it costs is its memory.
#   as --64 holder.s -o holder.o && ld -N -s --build-id=none holder.o -o holder.bin
	.globl _start
_start:
	mov	16(%rsp), %rsi		# argv[1]
	xor	%ebx, %ebx
1:	movzbl	(%rsi), %eax
	test	%eax, %eax
	jz	2f
	imul	$10, %rbx, %rbx
	lea	-48(%rbx,%rax), %rbx
	inc	%rsi
	jmp	1b
2:	shl	$20, %rbx		# bytes
	jz	4f
	mov	$9, %eax		# mmap
	xor	%edi, %edi
	mov	%rbx, %rsi
	mov	$3, %edx		# read, write
	mov	$0x22, %r10d		# private, anonymous
	mov	$-1, %r8
	xor	%r9d, %r9d
	syscall
	add	%rax, %rbx		# end
	mov	$0x9e3779b97f4a7c15, %rcx
	mov	%rcx, %rdx
3:	mov	%rdx, (%rax)
	imul	%rcx, %rdx
	add	%rax, %rdx
	add	$8, %rax
	cmp	%rbx, %rax
	jb	3b
4:	mov	$34, %eax		# pause
	syscall
	jmp	4b

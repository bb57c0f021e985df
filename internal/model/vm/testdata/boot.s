# A system of 512 bytes for tests: it prints "polder" on the first serial port, and then echoes what it reads there. "q"
# powers off, "r" reboots, "s" stops echoing for good. It knows nothing of ACPI's power button.
# Make boot.bin: as --32 boot.s -o boot.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary boot.o -o boot.bin
	.code16
	.globl _start
_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	mov $hello, %si
next:
	lodsb
	test %al, %al
	jz read
	call put
	jmp next
read:
	mov $0x3fd, %dx
	in %dx, %al
	test $1, %al
	jz read
	mov $0x3f8, %dx
	in %dx, %al
	cmp $'q', %al
	je off
	cmp $'r', %al
	je reset
	cmp $'s', %al
	je stuck
	call put
	jmp read
off:
	mov $0x604, %dx
	mov $0x2000, %ax
	out %ax, %dx
stuck:
	hlt
	jmp stuck
reset:
	mov $0xcf9, %dx
	mov $6, %al
	out %al, %dx
	jmp stuck
put:
	mov %al, %ah
wait:
	mov $0x3fd, %dx
	in %dx, %al
	test $0x20, %al
	jz wait
	mov %ah, %al
	mov $0x3f8, %dx
	out %al, %dx
	ret
hello:
	.asciz "polder\r\n"
	.org 510
	.word 0xaa55

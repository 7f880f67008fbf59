# Where the laboratory enters guest code, and what gcc's call sites call until they are patched.

.include "macros.inc"

.text

# Calls the function in rax with its arguments in place, then tells the laboratory, result in rax.
# Every task's stack ends here: rbp is zero, which is how a frame-pointer walk knows.
untraced lab_call
	xor %ebp, %ebp
	call *%rax
lab_call_return:
	vmcall
	ud2
done lab_call

# Sites call this in the files only: they become NOPs before anything runs.
untraced __fentry__
	ret
done __fentry__

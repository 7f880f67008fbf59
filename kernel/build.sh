#!/bin/sh
# build.sh [FOLDER [SOURCE...]]   makes the objects of all sources, or of those, beside them or in FOLDER
# The same gcc gives the same bytes: no debug information, no paths, no dates. Flags as of a kernel with
# CONFIG_FUNCTION_TRACER and CONFIG_UNWINDER_FRAME_POINTER, whose stacks both kinds of walker can walk.
set -eu
cd "$(dirname "$0")"
folder=${1:-.}
[ "$#" -gt 1 ] && shift || set -- *.c
for source; do
  # Warnings of casts between function types are off: system calls take what registers have.
  ${CC:-gcc} -std=gnu11 -O2 -g0 -Wall -Wextra -Wno-cast-function-type -Werror -flive-patching=inline-clone \
    -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only -ffreestanding -fno-stack-protector -fcf-protection=none \
    -fno-asynchronous-unwind-tables -fno-common -fno-strict-aliasing -fno-strict-overflow \
    -fno-delete-null-pointer-checks -fno-omit-frame-pointer -fno-optimize-sibling-calls \
    -fno-tree-loop-distribute-patterns -fno-jump-tables \
    -pg -mfentry -mrecord-mcount -mcmodel=kernel -mpreferred-stack-boundary=3 \
    -c -o "$folder/${source%.c}.o" "$source"
done

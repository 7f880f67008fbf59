/*
 * Functions of every shape that a compiler gives stack frames, for ORC that is generated from them. Never executed:
 * what they call is nowhere.
 */
typedef unsigned long u64;

#define noinline __attribute__((__noinline__))
#define noreturn __attribute__((__noreturn__))

extern long get(long);
extern void use(void *, ...);
extern void panic(const char *, ...) noreturn;
extern void do_exit(long) noreturn;

/* Jump tables: one, and two in a loop with state in between. */
long one_switch(long a, long b)
{
	switch (a) {
	case 0: return get(b);
	case 1: return b * 3;
	case 2: use(&b); return b;
	case 3: return a - b;
	case 4: return get(get(b));
	case 5: panic("five");
	case 6: return b << 3;
	case 9: return b ^ 7;
	}
	return -1;
}

long two_switches(long a, long b)
{
	long r = 0, i;

	for (i = 0; i < b; i++) {
		switch ((a + i) & 7) {
		case 0: r += get(i); break;
		case 1: r *= 3; break;
		case 2: r -= 7; break;
		case 3: r ^= i; break;
		case 4: r += b; break;
		case 5: r <<= 1; break;
		case 6: r = get(r); break;
		}
		switch (r & 7) {
		case 0: r += get(a); break;
		case 1: r *= 5; break;
		case 2: r -= 71; break;
		case 3: r ^= 3 * i; break;
		case 4: return r;
		case 5: r <<= 3; break;
		}
	}
	return r;
}

/* The stack grows by what is known only when it runs. */
long alloca_once(long n)
{
	char *p = __builtin_alloca(n);

	use(p, n);
	return p[0];
}

long alloca_loop(long n)
{
	long sum = 0;

	while (n-- > 0) {
		char *p = __builtin_alloca(3 * n + 8);

		use(p);
		sum += p[0];
	}
	return sum;
}

long array_of_length(long n)
{
	long array[n];

	use(array);
	{
		char another[n + 8];

		use(another);
	}
	return array[n - 1];
}

/* Locals that are more aligned than the stack, alone and with arguments on the stack. */
long aligned_local(long a)
{
	long x[8] __attribute__((__aligned__(32)));

	use(x, a);
	return x[0] + a;
}

long aligned_stack_arguments(long a, long b, long c, long d, long e, long f, long g, long h)
{
	long x[8] __attribute__((__aligned__(64)));

	use(x, a, b, c, d, e, f, g, h);
	get(g);
	return x[0] + g * h + a * b;
}

long aligned_alloca(long a, long b, long c, long d, long e, long f, long g)
{
	long x[8] __attribute__((__aligned__(64)));
	char *p = __builtin_alloca(a);

	use(x, p, b, c, d, e, f, g);
	return x[0] + g + p[1];
}

/* Variable arguments. */
long variable(int n, ...)
{
	__builtin_va_list list;
	long sum = 0;

	__builtin_va_start(list, n);
	while (n--)
		sum += __builtin_va_arg(list, long) + get(n);
	__builtin_va_end(list);
	return sum;
}

long variable_aligned(int n, ...)
{
	long x[8] __attribute__((__aligned__(64)));
	__builtin_va_list list;

	__builtin_va_start(list, n);
	use(x, list);
	while (n--)
		x[n & 7] += __builtin_va_arg(list, long);
	__builtin_va_end(list);
	return x[0] + get(x[1]);
}

/* Tail calls: direct, through pointers, and not always. */
long tail(long a)
{
	return get(a + 1);
}

long tail_sometimes(long a)
{
	if (a > 3)
		return get(a + 1);
	use(&a);
	return a;
}

long tail_pointer(long (*function)(long), long a)
{
	if (a)
		use((void *)a);
	return function(a);
}

static noinline long plus(long a)
{
	return get(a) + 1;
}

static noinline long twice(long a)
{
	return get(a) * 2;
}

long tail_table(long n, long a)
{
	static long (*const table[])(long) = { plus, twice, plus };

	use(&a);
	return table[n](a);
}

long tail_self(long n, long a)
{
	if (n == 0)
		return a;
	use((void *)n);
	return tail_self(n - 1, a * n);
}

/* A place to jump back to, with another function's registers. */
static long jump_buffer[5];

/* Two jumps that objtool takes for calls of another function. */
long computed_goto(long a)
{
	static const void *const labels[] = { &&x, &&y, &&z };
	long r = get(a);

	goto *labels[r % 3];
x:
	r += get(1);
y:
	r += get(2);
z:
	return r;
}

void long_jump(void)
{
	__builtin_longjmp((void **)jump_buffer, 1);
}

/* Large frames, structures by value, more arguments than registers. */
long large_frame(long a)
{
	char bytes[20000];

	use(bytes, a);
	return bytes[a];
}

struct large {
	long x[40];
};
extern struct large change(struct large);

struct large structure(struct large in)
{
	in.x[3] = get(1);
	return change(in);
}

long many_arguments(long a, long b, long c, long d, long e, long f, long g, long h, long i)
{
	use((void *)a, b, c, d, e, f, g, h, i);
	return get(i) + a + b * c - d * e + f * g - h * i;
}

/* Loops in loops, and ways out of them that do not return. */
long loops(long a, long b)
{
	long sum = 0, i, j, k;

	for (i = 0; i < a; i++)
		for (j = 0; j < b; j++)
			for (k = j; k < i; k++) {
				sum += get(i * j + k);
				if (sum == 77)
					panic("77");
				if (sum < 0)
					return sum;
			}
	return sum;
}

/* Never return: by name, and because nothing in them does. */
static noinline noreturn void endless(int x)
{
	use((void *)0, x);
	for (;;)
		get(x);
}

static noinline void only_panics(int x)
{
	use((void *)1, x);
	panic("%d", x);
}

long dead_ends(long a)
{
	if (a == 1)
		endless(3);
	if (a == 2)
		only_panics(4);
	if (a == 3)
		do_exit(a);
	if (a == 4)
		__builtin_trap();
	use(&a);
	return a;
}

/* Parts that are moved away as unlikely. */
__attribute__((__cold__)) long seldom(long a)
{
	use(&a, a, 2, 3);
	return a;
}

long unlikely_parts(long a, long b)
{
	long r = get(a);

	if (r < 0)
		seldom(b);
	r += get(b);
	if (__builtin_expect(r == b, 0)) {
		long q[4] = { a, a + 1, a * 3, get(a) };

		use(q, &q[2], a);
		seldom(q[a & 3]);
		if (q[1])
			do_exit(a);
		return q[0] + get(7);
	}
	return get(r) + a * b;
}

/* What inline assembly does to the stack. */
u64 flags_saved(long a)
{
	u64 flags;

	asm volatile("pushf; pop %0; cli" : "=r"(flags) : : "memory");
	a = get(a);
	asm volatile("push %0; popf" : : "r"(flags) : "memory", "cc");
	return a;
}

long set_jump(long a)
{
	if (__builtin_setjmp((void **)jump_buffer))
		return 5;
	use(jump_buffer);
	return a;
}

long frame_address(long a)
{
	use(__builtin_frame_address(0), __builtin_return_address(0));
	return get(a);
}

long recursive(long n)
{
	return n < 2 ? n : recursive(n - 1) + recursive(n - 2);
}

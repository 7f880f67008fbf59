/*
 * Data that live patches attach to objects whose structures they cannot change (Documentation/livepatch/shadow-vars.rst): found by
 * the object's address and a number of the patch's own.
 */
#include "kernel.h"

#define BUCKETS 64

typedef int (*klp_shadow_ctor_t)(void *obj, void *shadow_data, void *ctor_data);
typedef void (*klp_shadow_dtor_t)(void *obj, void *shadow_data);

static struct klp_shadow *buckets[BUCKETS];
static spinlock_t shadow_lock;

static struct klp_shadow **bucket_of(void *obj)
{
	return &buckets[((u64)obj >> 4) % BUCKETS];
}

/*
 * With the lock held, or preemption off: one is in its list when all of it is there, and goes when nobody is at it any more.
 */
static struct klp_shadow *find(void *obj, u64 id)
{
	struct klp_shadow *shadow = smp_load_acquire(bucket_of(obj));

	while (shadow && (shadow->obj != obj || shadow->id != id))
		shadow = smp_load_acquire(&shadow->next);
	return shadow;
}

static void *data_of(struct klp_shadow *shadow)
{
	return shadow ? shadow + 1 : NULL;
}

static void release(struct klp_shadow *shadow, klp_shadow_dtor_t dtor)
{
	if (dtor)
		dtor(shadow->obj, data_of(shadow));
	hypercall(HC_KFREE_RCU, (long)shadow, (long)(sizeof(*shadow) + shadow->data_size), 0);
}

/* Takes no lock, so that constructors, destructors and interrupts may call it. The data is the caller's to keep from going. */
void *klp_shadow_get(void *obj, u64 id)
{
	void *data;

	preempt_disable();
	data = data_of(find(obj, id));
	preempt_enable();
	return data;
}

/* What there is already, if it may be; or else a new one, which the constructor may refuse. */
static void *get_or_alloc(void *obj, u64 id, u64 size, klp_shadow_ctor_t ctor, void *ctor_data, int may_exist)
{
	struct klp_shadow *new = (struct klp_shadow *)hypercall(HC_KMALLOC, (long)(sizeof(*new) + size), 0, 0);
	struct klp_shadow *old;
	char *byte;
	u64 flags;
	int error;

	if (!new)
		return NULL;
	for (byte = data_of(new); byte < (char *)data_of(new) + size; byte++)
		*byte = 0;
	new->obj = obj;
	new->id = id;
	new->data_size = size;
	flags = spin_lock_irqsave(&shadow_lock);
	old = find(obj, id);
	if (old) {
		spin_unlock_irqrestore(&shadow_lock, flags);
		release(new, NULL);
		if (may_exist)
			return data_of(old);
		printk("Duplicate shadow variable <%p, %lx>\n", (u64)obj, id);
		return NULL;
	}
	/* With the lock held: nobody sees what is not made yet. */
	error = ctor ? ctor(obj, data_of(new), ctor_data) : 0;
	if (error) {
		spin_unlock_irqrestore(&shadow_lock, flags);
		release(new, NULL);
		printk("Failed to construct shadow variable <%p, %lx> (%d)\n", (u64)obj, id, error);
		return NULL;
	}
	new->next = *bucket_of(obj);
	smp_store_release(bucket_of(obj), new);
	spin_unlock_irqrestore(&shadow_lock, flags);
	return data_of(new);
}

/* NULL, and a line of the log, if there is one already. */
void *klp_shadow_alloc(void *obj, u64 id, u64 size, klp_shadow_ctor_t ctor, void *ctor_data)
{
	return get_or_alloc(obj, id, size, ctor, ctor_data, 0);
}

void *klp_shadow_get_or_alloc(void *obj, u64 id, u64 size, klp_shadow_ctor_t ctor, void *ctor_data)
{
	void *data = klp_shadow_get(obj, id);

	return data ? data : get_or_alloc(obj, id, size, ctor, ctor_data, 1);
}

void klp_shadow_free(void *obj, u64 id, klp_shadow_dtor_t dtor)
{
	u64 flags = spin_lock_irqsave(&shadow_lock);
	struct klp_shadow *shadow = find(obj, id);
	struct klp_shadow **at = bucket_of(obj);

	if (shadow) {
		while (*at != shadow)
			at = &(*at)->next;
		WRITE_ONCE(*at, shadow->next);
		release(shadow, dtor);
	}
	spin_unlock_irqrestore(&shadow_lock, flags);
}

/* Of all objects. */
void klp_shadow_free_all(u64 id, klp_shadow_dtor_t dtor)
{
	u64 flags = spin_lock_irqsave(&shadow_lock);
	int n;

	for (n = 0; n < BUCKETS; n++) {
		struct klp_shadow **at = &buckets[n];

		while (*at) {
			struct klp_shadow *shadow = *at;

			if (shadow->id != id) {
				at = &shadow->next;
				continue;
			}
			WRITE_ONCE(*at, shadow->next);
			release(shadow, dtor);
		}
	}
	spin_unlock_irqrestore(&shadow_lock, flags);
}

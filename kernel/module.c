/*
 * Modules come and go. The laboratory links and maps what it offers, as a loader's first half; here is what makes it a part
 * of the kernel, and what takes it away once nobody is in it any more.
 */
#include "kernel.h"

/* Those that are not unformed, the latest first. */
struct module *modules;
static struct mutex module_mutex;

static int same_text(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

/* With module_mutex held. */
static struct module *find_module(const char *name)
{
	struct module *module = modules;

	while (module && !same_text(module->name, name))
		module = module->next;
	return module;
}

#define NOTIFIED_POLL 1000

/* What live patching makes of a module's coming or going; it may have to wait for other CPUs. */
static long notify(struct module *module)
{
	long result;

	hypercall(HC_MODULE_NOTIFY, (long)module, 0, 0);
	while ((result = hypercall(HC_MODULE_NOTIFIED, (long)module, 0, 0)) > 0) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule_timeout(NOTIFIED_POLL);
	}
	return result;
}

static void unlink_module(struct module *module)
{
	struct module **at = &modules;

	mutex_lock(&module_mutex);
	while (*at != module)
		at = &(*at)->next;
	WRITE_ONCE(*at, module->next);
	/* With the mutex held: nobody asks for it again before it is gone. */
	synchronize_rcu();
	module->state = MODULE_STATE_UNFORMED;
	hypercall(HC_UNMAP_MODULE, (long)module, 0, 0);
	mutex_unlock(&module_mutex);
}

/* -EEXIST, or -ENOENT if none is offered by that name, or what its own beginning answers. */
static noinline long load_module(const char *name)
{
	struct module *module = NULL;
	long result = 0;

	mutex_lock(&module_mutex);
	if (find_module(name))
		result = -EEXIST;
	else if (!(module = (struct module *)hypercall(HC_MAP_MODULE, (long)name, 0, 0)))
		result = -ENOENT;
	else {
		module->refcnt = 0;
		WRITE_ONCE(module->state, MODULE_STATE_COMING);
		module->next = modules;
		smp_store_release(&modules, module);
	}
	mutex_unlock(&module_mutex);
	if (result)
		return result;
	result = notify(module);
	if (!result && module->init)
		result = ((int (*)(void))module->init)();
	if (result) {
		WRITE_ONCE(module->state, MODULE_STATE_GOING);
		notify(module);
		unlink_module(module);
		return result;
	}
	WRITE_ONCE(module->state, MODULE_STATE_LIVE);
	return 0;
}

/* -EAGAIN while somebody needs it, -EBUSY while it is coming or going. Its own end leaves nothing of it anywhere. */
static noinline long unload_module(const char *name)
{
	struct module *module;
	long result = 0;

	mutex_lock(&module_mutex);
	module = find_module(name);
	if (!module)
		result = -ENOENT;
	else if (module->state != MODULE_STATE_LIVE)
		result = -EBUSY;
	else if (module->refcnt)
		result = -EAGAIN;
	else
		WRITE_ONCE(module->state, MODULE_STATE_GOING);
	mutex_unlock(&module_mutex);
	if (result)
		return result;
	if (module->exit)
		((void (*)(void))module->exit)();
	notify(module);
	unlink_module(module);
	return 0;
}

/* At most 15 bytes of it. */
static long copy_name(char *to, const char *from)
{
	int n;

	for (n = 0; n < 16; n++) {
		if (copy_from_user(&to[n], from + n, 1))
			return -EFAULT;
		if (!to[n])
			return 0;
	}
	return -EINVAL;
}

/* Of init_module(2), what is needed here: a name in place of the image. */
long sys_init_module(const char *name)
{
	char text[16];
	long result = copy_name(text, name);

	return result ? result : load_module(text);
}

long sys_delete_module(const char *name)
{
	char text[16];
	long result = copy_name(text, name);

	return result ? result : unload_module(text);
}

/* Pipes, and what can be asked of any file: write, close, whether it can be read. */
#include "kernel.h"

#define PIPE_SIZE 64
#define NR_PIPES 30

struct pipe {
	spinlock_t lock;
	u32 head, tail; /* bytes written and read so far */
	int readers, writers; /* ends that are open */
	int users; /* ends that are open, and calls that are under way */
	struct wait_queue read_wait, write_wait;
	struct file ends[2];
	char bytes[PIPE_SIZE];
};

extern struct file *files[NR_FILES];

static struct pipe pipes[NR_PIPES];
static spinlock_t files_lock;

static struct pipe *pipe_of(struct file *file)
{
	return (struct pipe *)file->data;
}

static void pipe_put(struct pipe *pipe)
{
	u64 flags = spin_lock_irqsave(&files_lock);

	pipe->users--;
	spin_unlock_irqrestore(&files_lock, flags);
}

static void pipe_get(struct pipe *pipe)
{
	u64 flags = spin_lock_irqsave(&files_lock);

	pipe->users++;
	spin_unlock_irqrestore(&files_lock, flags);
}

/* Takes what there is, up to `count` bytes. */
static u32 pipe_take(struct pipe *pipe, char *to, u32 count)
{
	u64 flags = spin_lock_irqsave(&pipe->lock);
	u32 taken = 0;

	while (taken < count && pipe->tail != pipe->head)
		to[taken++] = pipe->bytes[pipe->tail++ % PIPE_SIZE];
	spin_unlock_irqrestore(&pipe->lock, flags);
	return taken;
}

static u32 pipe_put_bytes(struct pipe *pipe, const char *from, u32 count)
{
	u64 flags = spin_lock_irqsave(&pipe->lock);
	u32 put = 0;

	while (put < count && pipe->head - pipe->tail < PIPE_SIZE)
		pipe->bytes[pipe->head++ % PIPE_SIZE] = from[put++];
	spin_unlock_irqrestore(&pipe->lock, flags);
	return put;
}

static int readable(struct pipe *pipe)
{
	return READ_ONCE(pipe->head) != READ_ONCE(pipe->tail) || !READ_ONCE(pipe->writers);
}

static int writable(struct pipe *pipe)
{
	return READ_ONCE(pipe->head) - READ_ONCE(pipe->tail) < PIPE_SIZE || !READ_ONCE(pipe->readers);
}

/* file_operations.read: sleeps until there is something, or nobody can write any more. */
long pipefs_read(struct file *file, char *buffer, size_t count)
{
	struct pipe *pipe = pipe_of(file);
	char bytes[PIPE_SIZE];
	long result = 0;
	u32 taken = 0;

	if (count > PIPE_SIZE)
		count = PIPE_SIZE;
	pipe_get(pipe);
	while (count && !result) {
		/* Before the bytes: whoever writes and then closes has written by then. */
		int writers = smp_load_acquire(&pipe->writers);

		taken = pipe_take(pipe, bytes, count);
		if (taken || !writers)
			break;
		result = wait_event_interruptible(&pipe->read_wait, readable(pipe));
	}
	if (taken) {
		wake_up_all(&pipe->write_wait);
		result = copy_to_user(buffer, bytes, taken) ? -EFAULT : (long)taken;
	}
	pipe_put(pipe);
	return result;
}

/* file_operations.write: sleeps until all is written; what was, where a signal or the last reader's end comes first. */
long pipefs_write(struct file *file, const char *buffer, size_t count)
{
	struct pipe *pipe = pipe_of(file);
	char bytes[PIPE_SIZE];
	long result = 0;
	u32 done = 0;

	if (count > PIPE_SIZE)
		count = PIPE_SIZE;
	if (copy_from_user(bytes, buffer, count))
		return -EFAULT;
	pipe_get(pipe);
	while (done < count && !result) {
		u32 put;

		if (!READ_ONCE(pipe->readers)) {
			send_signal(current, SIGPIPE);
			result = -EPIPE;
			break;
		}
		put = pipe_put_bytes(pipe, bytes + done, count - done);
		done += put;
		if (put)
			wake_up_all(&pipe->read_wait);
		if (done < count)
			result = wait_event_interruptible(&pipe->write_wait, writable(pipe));
	}
	pipe_put(pipe);
	return done ? (long)done : result;
}

static const struct file_operations read_end = { .read = (u64)pipefs_read };
static const struct file_operations write_end = { .write = (u64)pipefs_write };

static int install(struct file *file)
{
	int fd;

	for (fd = 0; fd < NR_FILES; fd++) {
		if (files[fd])
			continue;
		files[fd] = file;
		return fd;
	}
	return -EMFILE;
}

long sys_pipe(int *fds)
{
	u64 flags = spin_lock_irqsave(&files_lock);
	struct pipe *pipe = NULL;
	int ends[2] = { -EMFILE, -EMFILE };
	int n;

	for (n = 0; n < NR_PIPES && !pipe; n++)
		if (!pipes[n].users)
			pipe = &pipes[n];
	if (pipe) {
		pipe->head = pipe->tail = 0;
		for (n = 0; n < 2; n++) {
			pipe->ends[n].ops = (u64)(n ? &write_end : &read_end);
			pipe->ends[n].pos = 0;
			pipe->ends[n].size_bytes = ~0UL >> 1;
			pipe->ends[n].data = (u64)pipe;
			ends[n] = install(&pipe->ends[n]);
		}
		if (ends[0] >= 0 && ends[1] < 0)
			files[ends[0]] = NULL;
		if (ends[1] >= 0) {
			pipe->readers = pipe->writers = 1;
			pipe->users = 2;
		}
	}
	spin_unlock_irqrestore(&files_lock, flags);
	if (ends[1] < 0)
		return -EMFILE;
	return copy_to_user(fds, ends, sizeof(ends)) ? -EFAULT : 0;
}

static struct file *file_of(u32 fd)
{
	return fd < NR_FILES ? READ_ONCE(files[fd]) : NULL;
}

static int is_pipe(struct file *file)
{
	return file->ops == (u64)&read_end || file->ops == (u64)&write_end;
}

long sys_write(u32 fd, const char *buffer, size_t count)
{
	struct file *file = file_of(fd);
	const struct file_operations *ops;

	if (!file)
		return -EBADF;
	ops = (const struct file_operations *)file->ops;
	if (!ops->write)
		return -EBADF;
	return ((long (*)(struct file *, const char *, size_t))ops->write)(file, buffer, count);
}

long sys_close(u32 fd)
{
	u64 flags = spin_lock_irqsave(&files_lock);
	struct file *file = file_of(fd);
	struct pipe *pipe = NULL;

	if (file) {
		files[fd] = NULL;
		if (is_pipe(file)) {
			pipe = pipe_of(file);
			WRITE_ONCE(*(file == &pipe->ends[0] ? &pipe->readers : &pipe->writers), 0);
		}
	}
	spin_unlock_irqrestore(&files_lock, flags);
	if (!file)
		return -EBADF;
	if (pipe) {
		wake_up_all(&pipe->read_wait);
		wake_up_all(&pipe->write_wait);
		pipe_put(pipe);
	}
	return 0;
}

#define NSEC_PER_MSEC 1000000

/* Of epoll_wait(2), what matters here: waits until one pipe can be read, and no signal ever restarts it. */
long sys_epoll_wait(u32 fd, void *events, long count, long timeout)
{
	struct wait_entry entry = { current, NULL, NULL };
	struct file *file = file_of(fd);
	u64 expires = clock + timeout * NSEC_PER_MSEC;
	struct pipe *pipe;
	long result;

	(void)events;
	(void)count;
	if (!file || file->ops != (u64)&read_end)
		return -EBADF;
	pipe = pipe_of(file);
	pipe_get(pipe);
	for (;;) {
		prepare_to_wait(&pipe->read_wait, &entry, TASK_INTERRUPTIBLE);
		result = readable(pipe);
		if (result)
			break;
		if (signal_pending(current)) {
			result = -EINTR;
			break;
		}
		if (timeout >= 0 && clock >= expires)
			break;
		if (timeout >= 0)
			schedule_timeout(expires - clock);
		else
			schedule();
	}
	finish_wait(&pipe->read_wait, &entry);
	pipe_put(pipe);
	return result;
}

// Loaded into a storage node with LD_PRELOAD: a disk that can lose power, fail and be slow.
//
// Before a write changes a segment file, what stood there is noted in a journal; a sync notes that the file's writes so far are
// durable. After the process was killed, the test puts back some of what was not durable: what a disk with a volatile cache may do
// when the power goes. Files, lengths and names are as durable as the file system makes them; only contents are taken back.
//
// FAULTS_JOURNAL names the journal. FAULTS_CONTROL names a file of 32-bit numbers. Four the test changes while the process runs: of a
// thousand writes and of a thousand syncs, how many fail; how long a sync takes longer, in milliseconds; of a thousand reads, how many fail. The
// fifth counts here what has failed or taken longer.
//
// The journal is a row of records, little endian: kind u32 (1 write, 2 sync), length u32, inode u64, offset u64 (of a sync: how many
// writes of that file it covers), number of the write in its file u64; behind that of a write the bytes that stood there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct record { uint32_t kind, length; uint64_t inode, offset, number; };

#define FILES 65536 // inodes fall on counters by their hash; two on one counter only make a sync cover less than it could
static uint64_t begun[FILES];
static pthread_rwlock_t order[FILES]; // a sync covers the writes that had returned before it began
static volatile uint32_t *control;
enum { WRITES_FAIL, SYNCS_FAIL, SYNC_DELAY_MS, READS_FAIL, MISBEHAVED, NUMBERS };
static int journal = -1;
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);

__attribute__((constructor)) static void load(void) {
	real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
	real_pread = dlsym(RTLD_NEXT, "pread64");
	real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
	real_fsync = dlsym(RTLD_NEXT, "fsync");
	for (int i = 0; i < FILES; i++) pthread_rwlock_init(&order[i], NULL);
	const char *path = getenv("FAULTS_JOURNAL"), *numbers = getenv("FAULTS_CONTROL");
	if (!path || !numbers) return;
	journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	int fd = open(numbers, O_RDWR | O_CLOEXEC);
	void *map = fd < 0 ? MAP_FAILED : mmap(NULL, NUMBERS * sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (journal < 0 || map == MAP_FAILED) abort();
	control = map;
	close(fd);
}

// Nothing may be half in the journal: it would hide what comes behind.
static void note(const struct record *head, const void *bytes) {
	struct iovec parts[2] = {{(void *)head, sizeof *head}, {(void *)bytes, head->kind == 1 ? head->length : 0}};
	if (writev(journal, parts, 2) != (ssize_t)(parts[0].iov_len + parts[1].iov_len)) abort();
}

static void misbehaved(void) { __atomic_add_fetch(&control[MISBEHAVED], 1, __ATOMIC_SEQ_CST); }

static int unlucky(int which) {
	static __thread uint64_t state;
	uint32_t of_thousand = control ? control[which] : 0;
	if (!of_thousand) return 0;
	if (!state) state = (uint64_t)(uintptr_t)&state ^ ((uint64_t)getpid() << 32) | 1;
	state ^= state << 13, state ^= state >> 7, state ^= state << 17;
	if (state % 1000 >= of_thousand) return 0;
	misbehaved();
	return 1;
}

static int is_file(int fd, uint64_t *inode) {
	struct stat about;
	if (journal < 0 || fstat(fd, &about) || !S_ISREG(about.st_mode)) return 0;
	*inode = about.st_ino;
	return 1;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t offset) {
	uint64_t inode;
	if (!is_file(fd, &inode)) return real_pwrite(fd, bytes, length, offset);
	if (unlucky(WRITES_FAIL)) { errno = EIO; return -1; }
	void *old = NULL;
	if (posix_memalign(&old, 4096, length)) { errno = ENOMEM; return -1; }
	memset(old, 0, length);
	for (size_t done = 0; done < length;) { // behind the end of the file there are zeros
		ssize_t got = real_pread(fd, (char *)old + done, length - done, offset + done);
		if (got <= 0) break;
		done += got;
	}
	pthread_rwlock_t *lock = &order[inode % FILES];
	pthread_rwlock_rdlock(lock);
	uint64_t number = __atomic_add_fetch(&begun[inode % FILES], 1, __ATOMIC_SEQ_CST);
	struct record head = {1, length, inode, offset, number};
	note(&head, old);
	ssize_t written = real_pwrite(fd, bytes, length, offset);
	pthread_rwlock_unlock(lock);
	free(old);
	return written;
}

ssize_t pread64(int fd, void *bytes, size_t length, off_t offset) {
	uint64_t inode;
	if (is_file(fd, &inode) && unlucky(READS_FAIL)) { errno = EIO; return -1; }
	return real_pread(fd, bytes, length, offset);
}

static int synced(int fd, int (*real)(int)) {
	uint64_t inode;
	if (!is_file(fd, &inode)) return real(fd);
	uint32_t delay = control ? control[SYNC_DELAY_MS] : 0;
	if (delay) {
		misbehaved();
		usleep(delay * 1000);
	}
	if (unlucky(SYNCS_FAIL)) { errno = EIO; return -1; }
	pthread_rwlock_t *lock = &order[inode % FILES];
	pthread_rwlock_wrlock(lock); // no write is on its way: all that have a number have returned
	struct record head = {2, 0, inode, begun[inode % FILES], 0};
	pthread_rwlock_unlock(lock);
	int outcome = real(fd);
	if (!outcome) note(&head, NULL);
	return outcome;
}

int fdatasync(int fd) { return synced(fd, real_fdatasync); }
int fsync(int fd) { return synced(fd, real_fsync); }

/* Stand-in for the functions of vmcompute.dll that concern compute systems and processes. */
#include "wire.h"
#include <stdlib.h>

typedef void(CALLBACK *notification_fn)(uint32_t type, void *context, HRESULT status, const WCHAR *data);

/* Functions whose results are one or two documents. */
static HRESULT documents(struct message *m, WCHAR **first, WCHAR **second)
{
	WCHAR *ignored;
	call_send(m);
	*(first ? first : &ignored) = get_text(m);
	if (second)
		*second = get_text(m);
	return call_end(m);
}

static HRESULT on_handle(const char *function, HANDLE h, const WCHAR *text, WCHAR **result)
{
	struct message m;
	call_begin(&m, function);
	put_number(&m, (uintptr_t)h);
	put_text(&m, text);
	return documents(&m, result, NULL);
}

static HRESULT just_handle(const char *function, HANDLE h)
{
	struct message m;
	call_begin(&m, function);
	put_number(&m, (uintptr_t)h);
	call_send(&m);
	return call_end(&m);
}

#define ON_SYSTEM(name) \
	API name(HANDLE h, const WCHAR *text, WCHAR **result) { return on_handle(#name, h, text, result); }

ON_SYSTEM(HcsStartComputeSystem)
ON_SYSTEM(HcsShutdownComputeSystem)
ON_SYSTEM(HcsTerminateComputeSystem)
ON_SYSTEM(HcsModifyComputeSystem)
ON_SYSTEM(HcsSignalProcess)
ON_SYSTEM(HcsModifyProcess)

API HcsTerminateProcess(HANDLE h, WCHAR **result) { return on_handle("HcsTerminateProcess", h, NULL, result); }
API HcsCloseComputeSystem(HANDLE h) { return just_handle("HcsCloseComputeSystem", h); }

/*
 * Threads of this library that serve a handle of the program. When the handle is given back they are waited for: a
 * program that has closed everything ends without any thread but its own.
 */
struct worker {
	struct worker *next;
	HANDLE handle; /* a registration or a process */
	HANDLE thread;
	SOCKET socket; /* its own, which ends it when it is shut down */
};

static struct worker *workers;
static SRWLOCK workers_lock = SRWLOCK_INIT;

/* start_worker starts a thread for a handle: 0 when that fails. s stays the thread's. */
static int start_worker(HANDLE handle, SOCKET s, LPTHREAD_START_ROUTINE run, void *param)
{
	struct worker *w = malloc(sizeof *w);

	if (!w)
		return 0;
	w->handle = handle;
	w->socket = s;
	AcquireSRWLockExclusive(&workers_lock);
	if ((w->thread = CreateThread(NULL, 0, run, param, 0, NULL))) {
		w->next = workers;
		workers = w;
	}
	ReleaseSRWLockExclusive(&workers_lock);
	if (!w->thread)
		free(w);
	return w->thread != NULL;
}

/* socket_ends closes a worker's socket, so that join_workers does not shut down another that has its number. */
static void socket_ends(SOCKET s)
{
	AcquireSRWLockExclusive(&workers_lock);
	for (struct worker *w = workers; w; w = w->next)
		if (w->socket == s)
			w->socket = INVALID_SOCKET;
	closesocket(s);
	ReleaseSRWLockExclusive(&workers_lock);
}

#define WORKER_PATIENCE 10000 /* ms; a thread is held up by a program that does not close its end of a stream */

/* join_workers ends the threads of a handle and waits for them. */
static void join_workers(HANDLE handle)
{
	struct worker *w, **at, *mine = NULL;

	AcquireSRWLockExclusive(&workers_lock);
	for (at = &workers; (w = *at);) {
		if (w->handle != handle) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		w->next = mine;
		mine = w;
		if (w->socket != INVALID_SOCKET)
			shutdown(w->socket, SD_BOTH);
	}
	ReleaseSRWLockExclusive(&workers_lock);
	while ((w = mine)) {
		mine = w->next;
		WaitForSingleObject(w->thread, WORKER_PATIENCE);
		CloseHandle(w->thread);
		free(w);
	}
}

API HcsCloseProcess(HANDLE h)
{
	join_workers(h);
	return just_handle("HcsCloseProcess", h);
}

API HcsCreateComputeSystem(const WCHAR *id, const WCHAR *configuration, HANDLE identity, HANDLE *system,
			   WCHAR **result)
{
	struct message m;
	(void)identity;
	call_begin(&m, "HcsCreateComputeSystem");
	put_text(&m, id);
	put_text(&m, configuration);
	call_send(&m);
	*system = (HANDLE)(uintptr_t)get_number(&m);
	*result = get_text(&m);
	return call_end(&m);
}

API HcsOpenComputeSystem(const WCHAR *id, HANDLE *system, WCHAR **result)
{
	struct message m;
	call_begin(&m, "HcsOpenComputeSystem");
	put_text(&m, id);
	call_send(&m);
	*system = (HANDLE)(uintptr_t)get_number(&m);
	*result = get_text(&m);
	return call_end(&m);
}

API HcsGetComputeSystemProperties(HANDLE h, const WCHAR *query, WCHAR **properties, WCHAR **result)
{
	struct message m;
	call_begin(&m, "HcsGetComputeSystemProperties");
	put_number(&m, (uintptr_t)h);
	put_text(&m, query);
	return documents(&m, properties, result);
}

API HcsGetProcessProperties(HANDLE h, WCHAR **properties, WCHAR **result)
{
	struct message m;
	call_begin(&m, "HcsGetProcessProperties");
	put_number(&m, (uintptr_t)h);
	return documents(&m, properties, result);
}

static HRESULT query(const char *function, const WCHAR *text, WCHAR **answer, WCHAR **result)
{
	struct message m;
	call_begin(&m, function);
	put_text(&m, text);
	return documents(&m, answer, result);
}

API HcsEnumerateComputeSystems(const WCHAR *text, WCHAR **systems, WCHAR **result)
{
	return query("HcsEnumerateComputeSystems", text, systems, result);
}

API HcsGetServiceProperties(const WCHAR *text, WCHAR **properties, WCHAR **result)
{
	return query("HcsGetServiceProperties", text, properties, result);
}

/* A registration for notifications keeps its connection, on which they come. */
struct registration {
	SOCKET socket;
	notification_fn notify;
	void *context;
};

/* Notifications are delivered from a thread that the program has never seen. */
static DWORD WINAPI deliver(void *param)
{
	struct registration *r = param;
	struct message m = { 0 };

	while (receive(r->socket, &m.buf)) {
		uint32_t type = (uint32_t)get_number(&m);
		HRESULT status = (HRESULT)get_number(&m);
		WCHAR *data = get_text(&m);
		r->notify(type, r->context, status, data);
		CoTaskMemFree(data);
		if (!send_all(r->socket, "", 1)) /* it was taken */
			break;
	}
	socket_ends(r->socket);
	free(m.buf.data);
	free(r);
	return 0;
}

static HRESULT watch(const char *function, HANDLE h, notification_fn notify, void *context, HANDLE *callback)
{
	struct message m;
	struct registration *r;
	SOCKET s;
	HRESULT hr;

	call_begin(&m, function);
	put_number(&m, (uintptr_t)h);
	call_send(&m);
	*callback = (HANDLE)(uintptr_t)get_number(&m);
	hr = call_keep(&m, &s);
	if (hr < 0 || !(r = malloc(sizeof *r))) {
		if (s != INVALID_SOCKET)
			closesocket(s);
		return hr < 0 ? hr : E_OUTOFMEMORY;
	}
	r->socket = s;
	r->notify = notify;
	r->context = context;
	if (!start_worker(*callback, s, deliver, r)) {
		closesocket(s);
		free(r);
		return E_OUTOFMEMORY;
	}
	return hr;
}

API HcsRegisterComputeSystemCallback(HANDLE h, notification_fn notify, void *context, HANDLE *callback)
{
	return watch("HcsRegisterComputeSystemCallback", h, notify, context, callback);
}

API HcsRegisterProcessCallback(HANDLE h, notification_fn notify, void *context, HANDLE *callback)
{
	return watch("HcsRegisterProcessCallback", h, notify, context, callback);
}

static HRESULT unwatch(const char *function, HANDLE callback)
{
	HRESULT hr = just_handle(function, callback);
	join_workers(callback); /* as the service does, after a notification under way */
	return hr;
}

API HcsUnregisterComputeSystemCallback(HANDLE c) { return unwatch("HcsUnregisterComputeSystemCallback", c); }
API HcsUnregisterProcessCallback(HANDLE c) { return unwatch("HcsUnregisterProcessCallback", c); }

typedef struct {
	uint32_t pid, reserved;
	HANDLE streams[3];
} process_information;

/* A stream of a process: a pipe of this system on the program's side, a connection on the other. */
struct stream {
	HANDLE pipe;
	SOCKET socket;
	int input;
};

/* transfer waits for one overlapped read or write of a pipe. */
static int transfer(HANDLE pipe, int write, void *data, DWORD n, DWORD *done)
{
	OVERLAPPED o = { .hEvent = CreateEventW(NULL, TRUE, FALSE, NULL) };
	BOOL ok = write ? WriteFile(pipe, data, n, NULL, &o) : ReadFile(pipe, data, n, NULL, &o);
	if (ok || GetLastError() == ERROR_IO_PENDING)
		ok = GetOverlappedResult(pipe, &o, done, TRUE);
	CloseHandle(o.hEvent);
	return ok;
}

static DWORD WINAPI pump(void *param)
{
	struct stream *s = param;
	char data[16384];
	DWORD n, put, part;

	if (s->input) {
		while (transfer(s->pipe, 0, data, sizeof data, &n) && n > 0 && send_all(s->socket, data, n))
			;
		shutdown(s->socket, SD_SEND);
	} else {
		int k;
		while ((k = recv(s->socket, data, sizeof data, 0)) > 0) {
			for (put = 0; put < (DWORD)k; put += part)
				if (!transfer(s->pipe, 1, data + put, (DWORD)k - put, &part))
					break;
			if (put < (DWORD)k)
				break;
		}
		FlushFileBuffers(s->pipe); /* until the program has read all */
	}
	CloseHandle(s->pipe);
	socket_ends(s->socket);
	free(s);
	return 0;
}

/* open_stream makes a pipe whose far end is stream n of a process: 0 input, 1 output, 2 errors. */
static HANDLE open_stream(uint64_t process, int n)
{
	static LONG last;
	WCHAR name[96];
	struct message m;
	struct stream *s = calloc(1, sizeof *s);
	HANDLE ours;

	if (!s)
		return NULL;
	call_begin(&m, "(stream)");
	put_number(&m, process);
	put_number(&m, (uint64_t)n);
	call_send(&m);
	s->input = n == 0;
	if (call_keep(&m, &s->socket) < 0)
		goto fail;
	wsprintfW(name, L"\\\\.\\pipe\\strata-%lu-%ld", GetCurrentProcessId(), InterlockedIncrement(&last));
	s->pipe = CreateNamedPipeW(name, PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | FILE_FLAG_FIRST_PIPE_INSTANCE,
				   PIPE_TYPE_BYTE, 1, 65536, 65536, 0, NULL);
	if (s->pipe == INVALID_HANDLE_VALUE)
		goto fail;
	ours = CreateFileW(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL);
	if (ours != INVALID_HANDLE_VALUE && start_worker((HANDLE)(uintptr_t)process, s->socket, pump, s))
		return ours;
	if (ours != INVALID_HANDLE_VALUE)
		CloseHandle(ours);
	CloseHandle(s->pipe);
fail:
	if (s->socket != INVALID_SOCKET)
		closesocket(s->socket);
	free(s);
	return NULL;
}

API HcsCreateProcess(HANDLE system, const WCHAR *parameters, process_information *info, HANDLE *process,
		     WCHAR **result)
{
	struct message m;
	uint64_t id, streams[3];
	HRESULT hr;

	call_begin(&m, "HcsCreateProcess");
	put_number(&m, (uintptr_t)system);
	put_text(&m, parameters);
	call_send(&m);
	id = get_number(&m);
	info->pid = (uint32_t)get_number(&m);
	for (int i = 0; i < 3; i++)
		streams[i] = get_number(&m);
	*result = get_text(&m);
	hr = call_end(&m);
	*process = (HANDLE)(uintptr_t)id;
	for (int i = 0; i < 3; i++)
		info->streams[i] = hr >= 0 && streams[i] ? open_stream(id, i) : NULL;
	return hr;
}

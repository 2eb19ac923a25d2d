/*
 * Stand-in for virtdisk.dll. The handle of a disk is the connection that opened it: closing the
 * handle tells the stand-in that the disk was closed.
 */
/* The system's header declares the functions as imported: it gets other names. */
#define OpenVirtualDisk imported_OpenVirtualDisk
#define AttachVirtualDisk imported_AttachVirtualDisk
#define DetachVirtualDisk imported_DetachVirtualDisk
#include "wire.h"
#include <virtdisk.h>
#undef OpenVirtualDisk
#undef AttachVirtualDisk
#undef DetachVirtualDisk

#define EXPORT __declspec(dllexport) DWORD WINAPI

/* The functions of this library answer Win32 error numbers. */
#define ERROR_OF(hr) ((DWORD)(hr) & 0xFFFF)

EXPORT OpenVirtualDisk(PVIRTUAL_STORAGE_TYPE type, PCWSTR path, VIRTUAL_DISK_ACCESS_MASK access,
			     OPEN_VIRTUAL_DISK_FLAG flags, POPEN_VIRTUAL_DISK_PARAMETERS parameters, PHANDLE disk)
{
	struct message m;
	SOCKET s;
	uint64_t self;
	HRESULT hr;

	(void)type, (void)flags;
	call_begin(&m, "OpenVirtualDisk");
	put_text(&m, path);
	put_number(&m, access);
	put_number(&m, parameters ? parameters->Version : 0);
	call_send(&m);
	hr = call_keep(&m, &s);
	self = (uint64_t)s;
	if (hr >= 0 && !send_all(s, &self, sizeof self))
		hr = UNREACHABLE;
	/* The answer to the handle says that it is known now. */
	if (hr >= 0 && !receive(s, &m.buf))
		hr = UNREACHABLE;
	if (hr < 0) {
		if (s != INVALID_SOCKET)
			closesocket(s);
		return ERROR_OF(hr);
	}
	*disk = (HANDLE)s;
	return 0;
}

static DWORD on_disk(const char *function, HANDLE disk)
{
	struct message m;
	call_begin(&m, function);
	put_number(&m, (uintptr_t)disk);
	call_send(&m);
	return ERROR_OF(call_end(&m));
}

EXPORT AttachVirtualDisk(HANDLE disk, PSECURITY_DESCRIPTOR security, ATTACH_VIRTUAL_DISK_FLAG flags,
			       ULONG provider, PATTACH_VIRTUAL_DISK_PARAMETERS parameters, LPOVERLAPPED overlapped)
{
	(void)security, (void)flags, (void)provider, (void)parameters, (void)overlapped;
	return on_disk("AttachVirtualDisk", disk);
}

EXPORT DetachVirtualDisk(HANDLE disk, DETACH_VIRTUAL_DISK_FLAG flags, ULONG provider)
{
	(void)flags, (void)provider;
	return on_disk("DetachVirtualDisk", disk);
}

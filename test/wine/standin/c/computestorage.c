/* Stand-in for computestorage.dll: filters and writable layers. */
#include "wire.h"

static HRESULT texts(const char *function, int count, const WCHAR *a, const WCHAR *b, const WCHAR *c)
{
	const WCHAR *all[] = { a, b, c };
	struct message m;
	call_begin(&m, function);
	for (int i = 0; i < count; i++)
		put_text(&m, all[i]);
	call_send(&m);
	return call_end(&m);
}

API HcsAttachLayerStorageFilter(const WCHAR *path, const WCHAR *data)
{
	return texts("HcsAttachLayerStorageFilter", 2, path, data, NULL);
}

API HcsDetachLayerStorageFilter(const WCHAR *path)
{
	return texts("HcsDetachLayerStorageFilter", 1, path, NULL, NULL);
}

API HcsAttachOverlayFilter(const WCHAR *path, const WCHAR *data)
{
	return texts("HcsAttachOverlayFilter", 2, path, data, NULL);
}

API HcsDetachOverlayFilter(const WCHAR *path, const WCHAR *data)
{
	return texts("HcsDetachOverlayFilter", 2, path, data, NULL);
}

API HcsInitializeWritableLayer(const WCHAR *path, const WCHAR *data, const WCHAR *options)
{
	return texts("HcsInitializeWritableLayer", 3, path, data, options);
}

API HcsFormatWritableLayerVhd(HANDLE disk)
{
	struct message m;
	call_begin(&m, "HcsFormatWritableLayerVhd");
	put_number(&m, (uintptr_t)disk);
	call_send(&m);
	return call_end(&m);
}

API HcsGetLayerVhdMountPath(HANDLE disk, WCHAR **path)
{
	struct message m;
	call_begin(&m, "HcsGetLayerVhdMountPath");
	put_number(&m, (uintptr_t)disk);
	call_send(&m);
	*path = m.hr >= 0 ? get_text(&m) : NULL;
	return call_end(&m);
}

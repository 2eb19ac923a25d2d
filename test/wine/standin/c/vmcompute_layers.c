/* Stand-in for the layer functions of vmcompute.dll. */
#include "wire.h"

static HRESULT on_layer(const char *function, const driver_info *info, const WCHAR *id)
{
	struct message m;
	call_begin(&m, function);
	put_info(&m, info);
	put_text(&m, id);
	call_send(&m);
	return call_end(&m);
}

#define ON_LAYER(name) \
	API name(const driver_info *info, const WCHAR *id) { return on_layer(#name, info, id); }

ON_LAYER(ActivateLayer)
ON_LAYER(DeactivateLayer)
ON_LAYER(UnprepareLayer)
ON_LAYER(DestroyLayer)

API PrepareLayer(const driver_info *info, const WCHAR *id, const layer_descriptor *d, uint32_t n)
{
	struct message m;
	call_begin(&m, "PrepareLayer");
	put_info(&m, info);
	put_text(&m, id);
	put_descriptors(&m, d, n);
	call_send(&m);
	return call_end(&m);
}

API CreateSandboxLayer(const driver_info *info, const WCHAR *id, uintptr_t parent, const layer_descriptor *d,
		       uint32_t n)
{
	struct message m;
	call_begin(&m, "CreateSandboxLayer");
	put_info(&m, info);
	put_text(&m, id);
	put_number(&m, parent);
	put_descriptors(&m, d, n);
	call_send(&m);
	return call_end(&m);
}

API GetLayerMountPath(const driver_info *info, const WCHAR *id, size_t *length, WCHAR *buffer)
{
	struct message m;
	WCHAR *path;
	size_t room = *length;

	call_begin(&m, "GetLayerMountPath");
	put_info(&m, info);
	put_text(&m, id);
	put_number(&m, room);
	put_number(&m, buffer != NULL);
	call_send(&m);
	if (m.hr >= 0) {
		*length = (size_t)get_number(&m);
		path = get_text(&m);
		if (buffer && path && wcslen(path) < room)
			wcscpy(buffer, path);
		CoTaskMemFree(path);
	}
	return call_end(&m);
}

API LayerExists(const driver_info *info, const WCHAR *id, uint32_t *exists)
{
	struct message m;
	call_begin(&m, "LayerExists");
	put_info(&m, info);
	put_text(&m, id);
	call_send(&m);
	if (m.hr >= 0)
		*exists = (uint32_t)get_number(&m);
	return call_end(&m);
}

API ExpandSandboxSize(const driver_info *info, const WCHAR *id, uint64_t size)
{
	struct message m;
	call_begin(&m, "ExpandSandboxSize");
	put_info(&m, info);
	put_text(&m, id);
	put_number(&m, size);
	call_send(&m);
	return call_end(&m);
}

API NameToGuid(const WCHAR *name, GUID *id)
{
	struct message m;
	call_begin(&m, "NameToGuid");
	put_text(&m, name);
	call_send(&m);
	if (m.hr >= 0)
		get_bytes(&m, id, sizeof *id);
	return call_end(&m);
}

API GrantVmAccess(const WCHAR *vm, const WCHAR *file)
{
	struct message m;
	call_begin(&m, "GrantVmAccess");
	put_text(&m, vm);
	put_text(&m, file);
	call_send(&m);
	return call_end(&m);
}

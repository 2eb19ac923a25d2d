/* Stand-in for cimfs.dll: mounting composite images. */
#include "wire.h"

typedef struct {
	const WCHAR *dir, *name;
} cim_path;

static HRESULT mount(const char *function, uint32_t count, const cim_path *images, uint32_t flags,
		     const GUID *volume, uint32_t digest_size, const void *digest)
{
	struct message m;
	call_begin(&m, function);
	put_number(&m, count);
	for (uint32_t i = 0; i < count; i++) {
		put_text(&m, images[i].dir);
		put_text(&m, images[i].name);
	}
	put_number(&m, flags);
	put_bytes(&m, volume, sizeof *volume);
	put_bytes(&m, digest, digest_size);
	call_send(&m);
	return call_end(&m);
}

API CimMountImage(const WCHAR *dir, const WCHAR *name, uint32_t flags, const GUID *volume)
{
	cim_path image = { dir, name };
	return mount("CimMountImage", 1, &image, flags, volume, 0, NULL);
}

API CimMergeMountImage(uint32_t count, const cim_path *images, uint32_t flags, const GUID *volume)
{
	return mount("CimMergeMountImage", count, images, flags, volume, 0, NULL);
}

API CimMountVerifiedImage(const WCHAR *dir, const WCHAR *name, uint32_t flags, const GUID *volume,
			  uint16_t digest_size, const void *digest)
{
	cim_path image = { dir, name };
	return mount("CimMountVerifiedImage", 1, &image, flags, volume, digest_size, digest);
}

API CimMergeMountVerifiedImage(uint32_t count, const cim_path *images, uint32_t flags, const GUID *volume,
			       uint16_t digest_size, const void *digest)
{
	return mount("CimMergeMountVerifiedImage", count, images, flags, volume, digest_size, digest);
}

API CimDismountImage(const GUID *volume)
{
	struct message m;
	call_begin(&m, "CimDismountImage");
	put_bytes(&m, volume, sizeof *volume);
	call_send(&m);
	return call_end(&m);
}

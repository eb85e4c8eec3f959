// CUDA's runtime library without a GPU: memory is the host's, copies copy, kernels do nothing, calls are noted.
// What isn't here answers 0 and does nothing: build.py makes it, and the other libraries, of the wheel's own symbols.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda_runtime_api.h"
#undef cudaGetDeviceProperties
#undef cudaGraphInstantiate

#define CALL cudaError_t
#define MOST_LOCKED 64
#define GPUS 2

static __thread int current;  // GPU of the thread
static int capturing;
static long last_handle = 0x1000;
static struct { const char *begin; size_t size; } locked[MOST_LOCKED];

void note(const char *format, ...) {
    const char *path = getenv("STAND_IN_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list values;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fputc('\n', file);
    fclose(file);
}

static void *handle(void) { return (void *)(last_handle++); }
static CALL allocate(void **p, size_t size) {
    return posix_memalign(p, 256, size ? size : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}
static int is_locked(const void *p) {
    for (int i = 0; i < MOST_LOCKED; i++)
        if (locked[i].begin && (const char *)p >= locked[i].begin && (const char *)p < locked[i].begin + locked[i].size)
            return 1;
    return 0;
}

CALL cudaMalloc(void **p, size_t size) { note("cudaMalloc"); return allocate(p, size); }
CALL cudaHostAlloc(void **p, size_t size, unsigned flags) { note("cudaHostAlloc"); return allocate(p, size); }
CALL cudaMallocHost(void **p, size_t size) { note("cudaMallocHost"); return allocate(p, size); }
CALL cudaFree(void *p) { free(p); return 0; }
CALL cudaFreeHost(void *p) { free(p); return 0; }
CALL cudaHostRegister(void *p, size_t size, unsigned flags) {
    note("cudaHostRegister");
    for (int i = 0; i < MOST_LOCKED; i++)
        if (!locked[i].begin) { locked[i].begin = p; locked[i].size = size; return 0; }
    return cudaErrorMemoryAllocation;
}
CALL cudaHostUnregister(void *p) {
    note("cudaHostUnregister");
    for (int i = 0; i < MOST_LOCKED; i++)
        if (locked[i].begin == p) { locked[i].begin = NULL; return 0; }
    return cudaErrorHostMemoryNotRegistered;
}
CALL cudaPointerGetAttributes(struct cudaPointerAttributes *about, const void *p) {
    memset(about, 0, sizeof *about);
    about->type = is_locked(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    return 0;
}
CALL cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    int up = kind == cudaMemcpyHostToDevice;
    note("cudaMemcpy %s %s gpu %d", up ? "up" : "down", is_locked(up ? from : to) ? "page-locked" : "pageable", current);
    memcpy(to, from, size);
    return 0;
}
CALL cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    memcpy(to, from, size);
    return 0;
}
CALL cudaMemset(void *p, int value, size_t size) { memset(p, value, size); return 0; }
CALL cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream) { memset(p, value, size); return 0; }
CALL cudaMemGetInfo(size_t *left, size_t *total) { *left = 8ul << 30; *total = 16ul << 30; return 0; }

CALL cudaGetDeviceCount(int *count) { *count = GPUS; return 0; }
CALL cudaGetDevice(int *device) { *device = current; return 0; }
CALL cudaSetDevice(int device) { current = device; return 0; }
CALL cudaDeviceSynchronize(void) { note("cudaDeviceSynchronize"); return 0; }
CALL cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
CALL cudaDriverGetVersion(int *version) { *version = 13010; return 0; }
CALL cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrComputeCapabilityMinor ? 0
        : attribute == cudaDevAttrWarpSize ? 32 : attribute == cudaDevAttrMultiProcessorCount ? 132 : 1024;
    return 0;
}
CALL cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
    memset(of, 0, sizeof *of);
    strcpy(of->name, "stand-in");
    of->totalGlobalMem = 16ul << 30;
    of->major = 9;
    of->multiProcessorCount = 132;
    of->warpSize = 32;
    of->maxThreadsPerBlock = 1024;
    of->maxThreadsPerMultiProcessor = 2048;
    of->sharedMemPerBlock = 48 << 10;
    of->regsPerBlock = 64 << 10;
    for (int axis = 0; axis < 3; axis++) { of->maxGridSize[axis] = 65535; of->maxThreadsDim[axis] = 1024; }
    return 0;
}

CALL cudaStreamCreate(cudaStream_t *stream) { note("cudaStreamCreate"); *stream = handle(); return 0; }
CALL cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    note("cudaStreamCreateWithFlags %s", flags == cudaStreamNonBlocking ? "non-blocking" : "blocking");
    *stream = handle();
    return 0;
}
CALL cudaStreamSynchronize(cudaStream_t stream) {
    note("cudaStreamSynchronize %s%s", stream ? "own" : "default", capturing ? " while capturing" : "");
    return 0;
}
CALL cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) { *status = capturing; return 0; }
CALL cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    note("cudaStreamBeginCapture");
    capturing = 1;
    return 0;
}
CALL cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) { capturing = 0; *graph = handle(); return 0; }
CALL cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    *made = handle();
    return 0;
}
CALL cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { note("cudaGraphLaunch"); return 0; }
CALL cudaEventCreate(cudaEvent_t *event) { *event = handle(); return 0; }
CALL cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = handle(); return 0; }
const char *cudaGetErrorString(cudaError_t error) { return "an error of the stand-in's"; }
const char *cudaGetErrorName(cudaError_t error) { return "standInError"; }

static CALL kernel(void) { note(capturing ? "kernel captured" : "kernel"); return 0; }
CALL cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t s) {
    return kernel();
}
CALL __cudaLaunchKernel(void *f, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t s) {
    return kernel();
}
CALL __cudaGetKernel(void **found, const void *f) { *found = (void *)f; return 0; }
void **__cudaRegisterFatBinary(void *binary) { static void *none[1]; return none; }
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}
CALL __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void **)stream = pushed.stream;
    return 0;
}

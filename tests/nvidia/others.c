// What the driver and cuDNN must answer so that ONNX Runtime's LSTM is called; the rest is made by build.py.
#include <stddef.h>

#define GPUS 2

int cuInit(int flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = GPUS; return 0; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }

size_t cudnnGetVersion(void) { return 91500; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return "an error of the stand-in's"; }
int cudnnGetRNNWeightSpaceSize(void *cudnn, void *rnn, size_t *size) { *size = 1 << 16; return 0; }
int cudnnGetRNNTempSpaceSizes(void *cudnn, void *rnn, int mode, void *x, size_t *work, size_t *reserve) {
    *work = 4096;
    *reserve = 0;
    return 0;
}
int cudnnGetRNNWeightParams(void *cudnn, void *rnn, int layer, size_t size, void *weights, int id, void *of_matrix,
                            void **matrix, void *of_bias, void **bias) {
    *matrix = *bias = weights;
    return 0;
}
int cudnnGetTensorNdDescriptor(void *of, int asked, int *dtype, int *axes, int *sizes, int *strides) {
    *dtype = 0;
    *axes = 3;
    for (int axis = 0; axis < 3; axis++) sizes[axis] = strides[axis] = 1;
    return 0;
}

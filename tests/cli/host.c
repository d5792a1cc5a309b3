/* Runs a library of a model on files, for the tests: all that a host can do, with nothing but the C library.
 *     host LIBRARY PREFIX FOLDER LEVEL THREADS WEIGHTS|- [RUNS]
 * FOLDER/shapes has a line of extents for each input, FOLDER/input_N its bytes; FOLDER/output_N gets those of the outputs.
 * With RUNS, THREADS threads of one run each, RUNS times, must all give the same bytes. */
#include "model.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64
static char message[300];
static const char *folder;
static __typeof__(&m_init) init;
static __typeof__(&m_run) run;
static __typeof__(&m_solve) solve;
static __typeof__(&m_model) model_of;
static __typeof__(&m_input) input;
static __typeof__(&m_output) output;
static __typeof__(&m_arena_bytes) arena_bytes;
static __typeof__(&m_input_bytes) input_bytes;
static __typeof__(&m_output_bytes) output_bytes;
static __typeof__(&m_output_dims) output_dims;

static void fail(int status, const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(status);
}

static void *memory(uint64_t bytes, int fill) {
    /* Not aligned to more than malloc's alignment, and full of NaNs or of ones. */
    char *p = malloc(bytes + 16);
    if (!p)
        fail(6, "no memory");
    memset(p, fill, bytes + 16);
    return p + 16 * ((uintptr_t)p / 16 % 2);
}

static FILE *named(const char *kind, int n, const char *mode) {
    char path[1000];
    snprintf(path, sizeof path, n < 0 ? "%s/%s" : "%s/%s_%d", folder, kind, n);
    FILE *file = fopen(path, mode);
    if (!file)
        fail(9, path);
    return file;
}

/* A parallel_for of threads that are made for each kernel: slow and simple. */
typedef struct { kiln_body body; void *task; int64_t lo, hi; uint32_t status; } range;
static void *work(void *p) {
    range *r = p;
    r->status = r->body(r->task, r->lo, r->hi);
    return 0;
}
static uint32_t parallel_for(void *host, int64_t programs, int64_t grain, kiln_body body, void *task) {
    int64_t threads = *(int *)host, each = (programs + threads - 1) / threads;
    pthread_t handles[MOST];
    range ranges[MOST];
    int used = 0;
    each = (each + grain - 1) / grain * grain;
    for (int64_t lo = 0; lo < programs; lo += each, used++) {
        ranges[used] = (range){body, task, lo, lo + each < programs ? lo + each : programs, 0};
        pthread_create(&handles[used], 0, work, &ranges[used]);
    }
    uint32_t status = 0;
    for (int n = used - 1; n >= 0; n--) {
        pthread_join(handles[n], 0);
        status = ranges[n].status ? ranges[n].status : status;
    }
    return status;
}

static kiln_context context;
static kiln_model model;
static const void *inputs[MOST];
static int64_t dims[MOST];
static uint64_t sizes[MOST];
static int runs;

/* One thread of many: its own arena and outputs, one context for all. */
static void *many(void *expected) {
    void **want = expected, *outputs[MOST];
    char own[300];
    uint64_t bytes = arena_bytes(dims);
    void *arena = memory(bytes, 0xff);
    for (uint32_t n = 0; n < model.outputs; n++)
        outputs[n] = memory(sizes[n], 0);
    for (int k = 0; k < runs; k++) {
        if (run(&context, inputs, outputs, dims, arena, bytes, own, sizeof own))
            return "a run failed";
        for (uint32_t n = 0; n < model.outputs; n++)
            if (memcmp(outputs[n], want[n], sizes[n]))
                return "a run differs";
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 7)
        fail(9, "usage: host LIBRARY PREFIX FOLDER LEVEL THREADS WEIGHTS|- [RUNS]");
    folder = argv[3];
    int threads = atoi(argv[5]);
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library)
        fail(9, dlerror());
    char name[200];
#define FIND(function, symbol) \
    snprintf(name, sizeof name, "%s_" symbol, argv[2]); \
    if (!(*(void **)&function = dlsym(library, name))) fail(9, dlerror())
    FIND(init, "init"); FIND(run, "run"); FIND(solve, "solve"); FIND(model_of, "model"); FIND(input, "input");
    FIND(output, "output"); FIND(arena_bytes, "arena_bytes"); FIND(input_bytes, "input_bytes");
    FIND(output_bytes, "output_bytes"); FIND(output_dims, "output_dims");
    model_of(&model);

    kiln_options options = {KILN_ABI, atoi(argv[4]), 0, 0, runs || threads < 2 ? 0 : parallel_for, &threads};
    if (strcmp(argv[6], "-")) {
        FILE *file = fopen(argv[6], "rb");
        if (!file)
            fail(9, argv[6]);
        char *weights = memory(model.weights_bytes, 0);
        options.weights = weights;
        options.weights_bytes = fread(weights, 1, model.weights_bytes, file);
    }
    int status = init(&context, &options, message, sizeof message);
    if (status)
        fail(status, message);

    static int64_t extents[MOST][16];
    const int64_t *shapes[MOST];
    FILE *file = named("shapes", -1, "r");
    for (uint32_t n = 0; n < model.inputs; n++) {
        kiln_tensor tensor;
        if (input(n, &tensor))
            fail(9, "no such input");
        for (uint32_t axis = 0; axis < tensor.rank; axis++)
            if (fscanf(file, "%ld", &extents[n][axis]) != 1)
                fail(9, "shapes are too short");
        shapes[n] = extents[n];
    }
    status = solve(shapes, dims, message, sizeof message);
    if (status)
        fail(status, message);
    for (uint32_t n = 0; n < model.inputs; n++) {
        uint64_t bytes = input_bytes(n, dims);
        void *p = memory(bytes, 0);
        inputs[n] = p;
        if (fread(p, 1, bytes, named("input", n, "rb")) != bytes)
            fail(9, "an input is too short");
    }
    void *outputs[MOST], *again[MOST];
    for (uint32_t n = 0; n < model.outputs; n++) {
        sizes[n] = output_bytes(n, dims);
        outputs[n] = memory(sizes[n], 0xff);
        again[n] = memory(sizes[n], 0);
    }
    uint64_t bytes = arena_bytes(dims);
    void *arena = memory(bytes, 0xff);
    status = run(&context, inputs, outputs, dims, arena, bytes, message, sizeof message);
    if (status)
        fail(status, message);
    /* Again, in an arena that is in use, with one byte too few, and with no more memory than that. */
    if (run(&context, inputs, again, dims, arena, bytes - 1, message, sizeof message) != KILN_USAGE)
        fail(9, "an arena that is too small was taken");
    status = run(&context, inputs, again, dims, arena, bytes, message, sizeof message);
    for (uint32_t n = 0; n < model.outputs; n++) {
        if (status || memcmp(outputs[n], again[n], sizes[n]))
            fail(9, "the second run differs");
        fwrite(outputs[n], 1, sizes[n], named("output", n, "wb"));
        kiln_tensor tensor;
        int64_t shape[16];
        if (output(n, &tensor) || output_dims(n, dims, shape))
            fail(9, "no such output");
        printf("%s %s", tensor.name, tensor.type);
        for (uint32_t axis = 0; axis < tensor.rank; axis++)
            printf(" %ld", (long)shape[axis]);
        puts("");
    }
    if (argc > 7) {
        pthread_t handles[MOST];
        runs = atoi(argv[7]);
        options.parallel_for = 0;
        init(&context, &options, message, sizeof message);
        for (int n = 0; n < threads; n++)
            pthread_create(&handles[n], 0, many, outputs);
        for (int n = 0; n < threads; n++) {
            void *wrong;
            pthread_join(handles[n], &wrong);
            if (wrong)
                fail(9, wrong);
        }
        printf("%d threads of %d runs\n", threads, runs);
    }
    return 0;
}

/* The functions of a compiled model, made by Kiln; docs/abi.md of Kiln says all about them.
 *
 * No function allocates, blocks, prints or keeps anything between calls, and all may be called on any number of threads at
 * once, as long as no two calls of @P@_run share an arena or an output. Status codes are those below; where a function takes
 * `message`, it gets a sentence that a zero byte ends (at most `message_bytes` bytes; it may be NULL). */
#ifndef @GUARD@_H
#define @GUARD@_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef KILN_ABI
#define KILN_ABI @ABI@

enum { /* status codes */
    KILN_OK = 0,
    KILN_INTERNAL = 1,    /* a bug of Kiln */
    KILN_USAGE = 2,       /* a null pointer, an arena that is too small, a wrong number */
    KILN_INVALID = 3,     /* dims or data break a rule of the model */
    KILN_UNSUPPORTED = 4, /* this CPU runs none of the code that may be used */
};

enum { /* CPU levels */
    KILN_BEST = -1,     /* the best that the library has and the CPU runs */
    KILN_PORTABLE = 0,  /* x86-64-v2: SSE4.2 */
    KILN_X86_64_V3 = 1, /* AVX2, FMA */
    KILN_X86_64_V4 = 2, /* AVX-512 */
};

/* Programs lo to hi (exclusive) of the task, 0 or a status. */
typedef uint32_t (*kiln_body)(void *task, int64_t lo, int64_t hi);

/* The host's: calls body(task, lo, hi) on ranges that cover 0..programs once, on any threads in any order, each a multiple
 * of `grain` programs long but for the last one; returns when all calls have, with 0 or, of the statuses that were not 0,
 * that of the lowest range. */
typedef uint32_t (*kiln_parallel_for)(void *host, int64_t programs, int64_t grain, kiln_body body, void *task);

typedef struct kiln_model {
    uint32_t abi;               /* KILN_ABI of the library */
    uint32_t inputs, outputs;   /* how many there are */
    uint32_t dims;              /* how many dims are free */
    const char *name;
    const char *metadata;       /* a JSON object with all there is to say */
    uint64_t weights_bytes;     /* of the file of weights that init must be given, 0 for none */
} kiln_model;

typedef struct kiln_tensor { /* an input or an output */
    const char *name;
    const char *type;           /* of an element: "f32", "i64", "bool" ... */
    const char *dims;           /* such as "batch, 3, 224, 224"; free dims and expressions over them by name */
    const int64_t *extents;     /* one for each dim, -1 where it is not constant */
    uint32_t rank;
    uint32_t element_bytes;
} kiln_tensor;

typedef struct kiln_dim { /* a free dim */
    const char *name;
    int64_t least, greatest;    /* inclusive */
} kiln_dim;

typedef struct kiln_options {
    uint32_t abi;               /* KILN_ABI */
    int32_t level;              /* KILN_BEST, or the level to run */
    const void *weights;        /* the file of weights, mapped or read, if it is not in the library; else NULL */
    uint64_t weights_bytes;
    kiln_parallel_for parallel_for; /* NULL to run on the calling thread */
    void *host;                 /* passed to parallel_for */
} kiln_options;

/* What runs need and do not change: init fills it in, any number of threads may share it, it needs no end. */
typedef struct kiln_context {
    uint64_t words[8];
} kiln_context;
#endif /* KILN_ABI */

#ifndef KILN_HOST_STEPS
#define KILN_HOST_STEPS

typedef struct kiln_operand { /* what a step of the host reads or makes: row-major */
    void *data;
    const char *type;
    const int64_t *extents;
    uint32_t rank;
    uint32_t element_bytes;
    uint64_t bytes;
} kiln_operand;

typedef struct kiln_step { /* a step that the host does */
    const char *op;             /* its name, such as "determinant" */
    const char *text;           /* the same with its attributes */
    const char *nodes;          /* what the model calls it */
    uint32_t number;            /* of the host's steps, in the order of "host_steps" in the metadata */
    uint32_t inputs, outputs;
    uint32_t reserved;
    const kiln_operand *operands; /* the inputs, which are only read, then the outputs, which the host fills */
    const int64_t *dims;        /* the free dims, which attributes may name */
} kiln_step;

/* The host's: does a step and gives 0, or another status and a message. */
typedef int32_t (*kiln_host_step)(void *host, const kiln_step *step, char *message, uint64_t message_bytes);
#endif /* KILN_HOST_STEPS */

/* The version of these functions: KILN_ABI. */
uint32_t @P@_abi(void);

/* What the model is. */
void @P@_model(kiln_model *model);

/* The n-th input, output, free dim. */
int32_t @P@_input(uint32_t n, kiln_tensor *input);
int32_t @P@_output(uint32_t n, kiln_tensor *output);
int32_t @P@_dim(uint32_t n, kiln_dim *dim);

/* The highest level that this CPU runs, -1 for none. */
int32_t @P@_level(void);

/* Makes a context. `options` may be NULL: the best level, one thread. */
int32_t @P@_init(kiln_context *context, const kiln_options *options, char *message, uint64_t message_bytes);

/* Gives a context the function that does the steps of the host, for a model that has any ("host_steps" in the metadata). */
int32_t @P@_host(kiln_context *context, kiln_host_step function, void *host);

/* Finds the values of the free dims, in the order of @P@_dim, from the shapes of all inputs. */
int32_t @P@_solve(const int64_t *const *shapes, int64_t *dims, char *message, uint64_t message_bytes);

/* Bytes of the arena that a run with these dims needs, at any address; 0 where the dims are not allowed. `dims` may be NULL
 * where none is free. */
uint64_t @P@_arena_bytes(const int64_t *dims);

/* Bytes of the n-th input or output; UINT64_MAX where there is none, or the dims are not allowed. */
uint64_t @P@_input_bytes(uint32_t n, const int64_t *dims);
uint64_t @P@_output_bytes(uint32_t n, const int64_t *dims);

/* The extents of the n-th output. */
int32_t @P@_output_dims(uint32_t n, const int64_t *dims, int64_t *extents);

/* Runs the model: row-major inputs to row-major outputs, each of the size that the functions above say, none overlapping an
 * output or the arena. What the arena holds before does not matter, and nothing of use is in it afterwards. */
int32_t @P@_run(const kiln_context *context, const void *const *inputs, void *const *outputs, const int64_t *dims,
               void *arena, uint64_t arena_bytes, char *message, uint64_t message_bytes);

#ifdef __cplusplus
}
#endif
#endif

/* Runs a model of one f32 input and one f32 output whose determinants the caller computes, as a library leaves to its host what has no
 * compiled code:
 *     kiln compile MODEL -o libnet.so --emit so && cc host_step.c -I. libnet.so -o run && ./run < input.bin > output.bin */
#include "net.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The determinant of an n x n matrix in row-major order, which it destroys: elimination with partial pivoting. */
static double determinant(double *m, int64_t n) {
    double product = 1;
    for (int64_t k = 0; k < n; k++) {
        int64_t pivot = k;
        for (int64_t r = k + 1; r < n; r++)
            if (fabs(m[r * n + k]) >= fabs(m[pivot * n + k]))
                pivot = r;
        for (int64_t c = 0; pivot != k && c < n; c++) {
            double swapped = m[k * n + c];
            m[k * n + c] = m[pivot * n + c], m[pivot * n + c] = swapped;
        }
        product *= pivot == k ? m[k * n + k] : -m[k * n + k];
        if (product == 0)
            return product;
        for (int64_t r = k + 1; r < n; r++) {
            double factor = m[r * n + k] / m[k * n + k];
            for (int64_t c = k; c < n; c++)
                m[r * n + c] -= factor * m[k * n + c];
        }
    }
    return product;
}

/* The library calls this for each of its "host_steps", which the metadata lists. */
static int32_t step(void *host, const kiln_step *step, char *message, uint64_t message_bytes) {
    const kiln_operand *x = &step->operands[0], *y = &step->operands[step->inputs];
    (void)host;
    if (strcmp(step->op, "determinant") || strcmp(x->type, "f32"))
        return snprintf(message, message_bytes, "%s: this host does determinants of f32 only", step->nodes), KILN_UNSUPPORTED;
    int64_t n = x->extents[x->rank - 1];
    double *matrix = malloc(n * n * sizeof *matrix);
    for (uint64_t k = 0; k < y->bytes / y->element_bytes; k++) {
        for (int64_t i = 0; i < n * n; i++)
            matrix[i] = ((const float *)x->data)[k * n * n + i];
        ((float *)y->data)[k] = determinant(matrix, n);
    }
    free(matrix);
    return KILN_OK;
}

int main(void) {
    char message[200];
    kiln_context context;
    uint64_t arena = net_arena_bytes(NULL), in = net_input_bytes(0, NULL), out = net_output_bytes(0, NULL);
    void *x = malloc(in), *y = malloc(out), *memory = malloc(arena);
    int status = net_init(&context, NULL, message, sizeof message);
    if (!status)
        status = net_host(&context, step, NULL);
    if (!status && fread(x, 1, in, stdin) != in)
        return puts("the input is too short"), 2;
    if (!status)
        status = net_run(&context, (const void *const[]){x}, (void *const[]){y}, NULL, memory, arena, message, sizeof message);
    if (status)
        return fprintf(stderr, "%s\n", message), status;
    return fwrite(y, 1, out, stdout) != out;
}

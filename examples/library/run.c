/* Runs a model that `kiln compile MODEL --emit so|obj|staticlib --prefix net` made of one f32 input and one f32 output:
 *     cc run.c -I. libnet.so -o run && ./run < input.bin > output.bin */
#include "net.h"
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    char message[200];
    kiln_context context;
    int64_t dims[8] = {1, 1, 1, 1, 1, 1, 1, 1}; /* free dims, if there are any */
    uint64_t arena = net_arena_bytes(dims), in = net_input_bytes(0, dims), out = net_output_bytes(0, dims);
    void *x = malloc(in), *y = malloc(out), *memory = malloc(arena);
    int status = net_init(&context, NULL, message, sizeof message);
    if (!status && fread(x, 1, in, stdin) != in)
        return puts("the input is too short"), 2;
    if (!status)
        status = net_run(&context, (const void *const[]){x}, (void *const[]){y}, dims, memory, arena, message, sizeof message);
    if (status)
        return fprintf(stderr, "%s\n", message), status;
    return fwrite(y, 1, out, stdout) != out;
}

// The norm of all gradients together, and the factor by which an update multiplies them.
#pragma once

#include "types.cuh"

// What kolo_norm leaves and updates read, in device memory: the host need not wait for it.
struct Norm {
    // Of the gradients as they should be: with `unscale` applied.
    f64 norm;
    // By which gradients are multiplied: `unscale`, and less where the norm is clipped.
    f64 factor;
    // Whether the norm is a number, and finite.
    u32 finite;
    u32 unused;
};
static_assert(sizeof(Norm) == 24, "Rust reads the same");

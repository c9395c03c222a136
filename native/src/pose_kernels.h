// What passes between the posing functions (pose.cpp, once) and their kernels (pose_isa.cpp, once per
// instruction set). Plain data only.
#pragma once

#include <stdint.h>

#include "guava_native.h"

namespace guava {

// A posed triangle as its Gaussians need it (Eq. 3). Rows of four floats, the fourth of the corners unused.
struct alignas(16) PosedTriangle {
    float corners[3][4];
    float frame[3][4];     // sigma R_t, by columns
    float quaternion[4];   // of R_t, not normalised
    float sigma, unused[3];
};

// Each works on a range and returns whether every index in it names something that is there.
struct PoseKernels {
    bool (*skin)(const guava_body *body, const guava_body_pose *out, int64_t begin, int64_t end);
    bool (*triangles)(const guava_pose_scene *scene, PosedTriangle *out, int64_t begin, int64_t end);
    bool (*gaussians)(const guava_pose_scene *scene, const PosedTriangle *triangles, const guava_posed *out,
                      int64_t begin, int64_t end);
};

} // namespace guava

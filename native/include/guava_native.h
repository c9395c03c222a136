/* The C interface of Guava's native kernels: plain C types, no torch, no Python.
 *
 * Conventions are those of the Python package (src/guava/__init__.py, rendering/splatting.py): world metres,
 * OpenCV cameras, pixel centres at half-integers, quaternions (w, x, y, z). Arrays are float32 unless their
 * type says otherwise, C order and contiguous; they belong to the caller and are not kept after a call.
 *
 * Every call is made on a context, which holds threads and working memory. A context serves one call at a
 * time; different contexts are independent, and nothing is global, so that calls on several may overlap.
 * Threads do not survive fork(): a child must make contexts of its own (and must not destroy its parent's).
 */
#ifndef GUAVA_NATIVE_H
#define GUAVA_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GUAVA_API __declspec(dllexport)
#else
#define GUAVA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a function changes; the loader refuses another number. */
#define GUAVA_ABI_VERSION 2

enum guava_status {
    GUAVA_OK = 0,
    GUAVA_CANCELLED = 1,     /* the poll function asked for it; outputs are undefined */
    GUAVA_OUT_OF_MEMORY = 2, /* nothing was kept; the context is usable */
    GUAVA_INVALID_VALUE = 3, /* see guava_splat_problem */
    GUAVA_INVALID_CALL = 4,  /* a null pointer, a negative size, a size that overflows, a wrong state */
};

/* Instruction sets. Which ones a library has depends on what it was built for. */
enum guava_isa {
    GUAVA_ISA_BEST = -1,
    GUAVA_ISA_BASELINE = 0, /* SSE2 on x86-64; NEON on arm64 */
    GUAVA_ISA_AVX2 = 1,     /* AVX2 and FMA */
    GUAVA_ISA_AVX512 = 2,   /* AVX-512 F, BW, DQ and VL */
};

GUAVA_API int32_t guava_abi_version(void);
/* What the library was built from and with: "source=<hash> compiler=<name and version> target=<triple>". */
GUAVA_API const char *guava_build_info(void);
/* Whether this library has kernels for an instruction set and this machine can run them. */
GUAVA_API int32_t guava_isa_available(int32_t isa);
/* "sse2", "neon", "avx2", "avx512" */
GUAVA_API const char *guava_isa_name(int32_t isa);

typedef struct guava_context guava_context;

/* threads >= 1, the calling one included. NULL if memory or threads cannot be had. */
GUAVA_API guava_context *guava_context_create(int32_t threads);
GUAVA_API void guava_context_destroy(guava_context *context);
/* Choose kernels (for tests and benchmarks); GUAVA_ISA_BEST by default. */
GUAVA_API int32_t guava_context_set_isa(guava_context *context, int32_t isa);
GUAVA_API int32_t guava_context_get_isa(const guava_context *context);
/* Called on the calling thread about every 50 ms while a call runs; non-zero cancels it. May be NULL. */
typedef int32_t (*guava_poll)(void *user);
GUAVA_API void guava_context_set_poll(guava_context *context, guava_poll poll, void *user);
/* Working memory that the context holds, bytes, and giving it back. */
GUAVA_API size_t guava_context_bytes(const guava_context *context);
GUAVA_API void guava_context_trim(guava_context *context);

/* ---- Splatting: guava.rendering.splat ------------------------------------------------------------------ */

enum guava_splat_flags {
    GUAVA_SPLAT_NORMALIZE_QUATERNIONS = 1,
    GUAVA_SPLAT_EXCLUSIVE_LIMITS = 2,
    GUAVA_SPLAT_RADIUS_EXTENT = 4,
    GUAVA_SPLAT_STRAIGHT_THROUGH = 8,
    GUAVA_SPLAT_INVERSE_DEPTH = 16,
};

typedef struct guava_splat_scene {
    int64_t count;        /* N */
    int32_t channels;     /* C >= 0 */
    int32_t width, height;
    int32_t flags;        /* guava_splat_flags: SplatConventions */
    const float *means;       /* (N, 3) */
    const float *quaternions; /* (N, 4) */
    const float *scales;      /* (N, 3) */
    const float *opacities;   /* (N,) */
    const float *features;    /* (N, C) */
    const float *background;  /* (C,) or NULL: zero */
    float view[12];       /* rows of world_to_camera, 3 x 4 */
    float intrinsics[6];  /* first two rows of the intrinsics, 2 x 3 */
    float frustum[4];     /* x_low, x_high, y_low, y_high: normalized_frustum() */
    float eps2d, alpha_max, alpha_min, transmittance_min, near_plane;
} guava_splat_scene;

typedef struct guava_splat_picture {
    float *features; /* (H, W, C), background included */
    float *alpha;    /* (H, W) */
    float *depth;    /* (H, W), or inverse depth; may be NULL */
} guava_splat_picture;

/* What is wrong with a scene, after GUAVA_INVALID_VALUE. */
typedef struct guava_splat_problem {
    int32_t array; /* 0 means, 1 quaternions, 2 scales, 3 opacities, 4 features, 5 background, 6 camera */
    int32_t kind;  /* 0 NaN or infinite, 1 zero quaternion, 2 opacity outside [0, 1] (by more than 1e-4) */
    int64_t row;   /* the first such row */
} guava_splat_problem;

/* Times of the last call's stages, milliseconds on the calling thread's clock, and counts. */
typedef struct guava_splat_stats {
    double project_ms, sort_ms, bin_ms, blend_ms;       /* forward */
    double blend_backward_ms, project_backward_ms;      /* backward */
    int64_t visible;  /* Gaussians that are drawn */
    int64_t pairs;    /* Gaussian-tile pairs */
    /* Counted by guava_splat_count only: evaluated exponents and multiplied-out (Gaussian, pixel) weights,
     * masked lanes included. */
    int64_t evaluations, weights;
} guava_splat_stats;

/* What a backward pass needs of its forward pass. Made once, filled by forward, reusable. */
typedef struct guava_splat_state guava_splat_state;
GUAVA_API guava_splat_state *guava_splat_state_create(void);
GUAVA_API void guava_splat_state_destroy(guava_splat_state *state);
GUAVA_API size_t guava_splat_state_bytes(const guava_splat_state *state);

/* Draw. state: NULL if no backward pass will follow. problem, stats: may be NULL.
 * The picture does not depend on the number of threads, bit for bit. */
GUAVA_API int32_t guava_splat_forward(guava_context *context, const guava_splat_scene *scene,
                                      const guava_splat_picture *picture, guava_splat_state *state,
                                      guava_splat_problem *problem, guava_splat_stats *stats);
/* Like forward without a picture: fills the counts. */
GUAVA_API int32_t guava_splat_count(guava_context *context, const guava_splat_scene *scene,
                                    guava_splat_stats *stats);

typedef struct guava_splat_gradients {
    /* of the loss by the picture; NULL: zero */
    const float *out_features, *out_alpha, *out_depth;
    /* of the loss by the scene, overwritten; NULL: not wanted */
    float *means, *quaternions, *scales, *opacities, *features, *background;
    float *view;       /* (12,) */
    float *intrinsics; /* (6,) */
} guava_splat_gradients;

/* scene must hold the same values as at forward, state be that call's. Gradients do not depend on the number
 * of threads, bit for bit. */
GUAVA_API int32_t guava_splat_backward(guava_context *context, const guava_splat_scene *scene,
                                       const guava_splat_state *state,
                                       const guava_splat_gradients *gradients, guava_splat_stats *stats);

/* ---- Animation: guava.body.ehm, guava.avatar.posing, guava.rendering.frame ----------------------------- */

/* Most joints, because rows of joints are named by one byte. */
#define GUAVA_MAX_JOINTS 256

/* A mesh and its skeleton at rest, and a pose. */
typedef struct guava_body {
    int32_t vertices, joints, influences; /* V, J, K */
    const int32_t *parents;     /* (J,): parents[0] is ignored, parents[j] < j */
    const float *rest_vertices; /* (V, 3), pose correctives included */
    const float *rest_joints;   /* (J, 3) */
    const float *rotations;     /* (J, 3, 3) relative to the parent */
    const uint8_t *indices;     /* (V, K) joints that move a vertex */
    const float *weights;       /* (V, K) by how much */
    float translation[3];
} guava_body;

typedef struct guava_body_pose {
    float *joints;           /* (J, 3) */
    float *joint_transforms; /* (J, 4, 4) posed = transform @ rest */
    float *vertices;         /* (V, 3) */
    float *transforms;       /* (V, 4, 4) blended */
} guava_body_pose;

/* Forward kinematics and linear blend skinning: EHM.forward behind EHM.rest.
 * GUAVA_INVALID_VALUE: a parent or a joint index that does not exist. */
GUAVA_API int32_t guava_pose_body(guava_context *context, const guava_body *body, const guava_body_pose *out);

/* An avatar's Gaussians (guava.avatar.Gaussians) and the mesh that they follow, in one pose. */
typedef struct guava_pose_scene {
    int64_t count;                      /* N */
    int32_t vertices, faces, joints;    /* V, F, J */
    int32_t influences;                 /* K, columns of skin_indices and skin_weights */
    int32_t mean_edge;                  /* sigma rule: 1 "mean_edge", 0 "edge_and_height" */
    const float *positions;             /* (N, 3) */
    const float *rotations;             /* (N, 4) */
    const float *scales;                /* (N, 3) */
    const float *barycentrics;          /* (N, 3) */
    const float *local_offset;          /* (N, 3) */
    const float *sigma;                 /* (N,) */
    const float *triangle_rotation;     /* (N, 4) */
    const float *skin_weights;          /* (N, K) */
    const uint8_t *skin_indices;        /* (N, K) */
    const uint8_t *binding;             /* (N,) 0 triangle, 1 vertex, 2 skin */
    const int32_t *anchor;              /* (N,) */
    const int32_t *triangles;           /* (F, 3) */
    const float *mesh;                  /* (V, 3) posed */
    const float *transforms;            /* (V, 4, 4) */
    const float *joint_transforms;      /* (J, 4, 4) */
    float origin[3];                    /* where anchors go whose barycentrics do not sum to one */
} guava_pose_scene;

typedef struct guava_posed {
    float *means;       /* (N, 3) */
    float *quaternions; /* (N, 4) unit */
    float *scales;      /* (N, 3) */
} guava_posed;

/* GUAVA_INVALID_VALUE: a Gaussian is bound to what is not there, or a triangle has such a vertex. */
GUAVA_API int32_t guava_pose_gaussians(guava_context *context, const guava_pose_scene *scene,
                                       const guava_posed *out);

/* A picture for the screen or the encoder. */
typedef struct guava_frame {
    int32_t width, height;   /* of the picture that is made */
    int32_t samples;         /* per pixel side: inputs are (height * samples, width * samples) and averaged */
    int32_t channels;        /* of `features`, >= 3; the first three are red, green, blue */
    int32_t glowing;         /* 1: `features` come from a refiner, see guava.rendering.frame */
    const float *features;   /* premultiplied on black */
    const float *alpha;
    const float *behind;     /* (height, width, 3) in [0, 1], or NULL: `background` */
    float background[3];
    int64_t row_bytes;       /* from one row of `rgb` to the next, >= 3 * width */
    uint8_t *rgb;            /* (height, width, 3) */
} guava_frame;

GUAVA_API int32_t guava_frame_rgb8(guava_context *context, const guava_frame *frame);

#ifdef __cplusplus
}
#endif
#endif

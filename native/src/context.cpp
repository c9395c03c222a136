// Thread pool and context; see context.h.
#include "context.h"

#include "isa.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace guava {
namespace {

// Between the stages of one call workers wait this long before they sleep: some 30 microseconds, about what
// waking a sleeper costs, so that waiting never costs more than twice what it should have.
constexpr int kSpins = 600;
constexpr auto kPollInterval = std::chrono::milliseconds(50);

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); // "yield" is a no-op on most cores
#endif
}

constexpr size_t kCacheLine = 64, kLargePage = size_t{2} << 20;

std::align_val_t alignment_of(size_t bytes) {
    return std::align_val_t(bytes < 2 * kLargePage ? kCacheLine : kLargePage);
}

} // namespace

void *allocate(size_t bytes) {
    void *memory = ::operator new(bytes, alignment_of(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // a wish only
    if (bytes >= 2 * kLargePage) madvise(memory, bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
    return memory;
}

void release(void *memory, size_t bytes) { ::operator delete(memory, alignment_of(bytes)); }

ThreadPool::ThreadPool(int threads) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    try {
        for (int worker = 1; worker < threads; ++worker)
            workers_.emplace_back([this, worker] { work(worker); });
    } catch (...) {
        stop_workers();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop_workers(); }

void ThreadPool::stop_workers() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        epoch_.fetch_add(1, std::memory_order_release);
    }
    started_.notify_all();
    for (std::thread &worker : workers_) worker.join();
    workers_.clear();
}

bool ThreadPool::enter() {
    uint32_t inside = gate_.load(std::memory_order_acquire);
    while (!(inside & kClosed))
        if (gate_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
    return false;
}

void ThreadPool::leave() {
    if (gate_.fetch_sub(1, std::memory_order_acq_rel) - 1 == kClosed) {
        std::lock_guard<std::mutex> lock(mutex_); // the starter may be between its check and its sleep
        finished_.notify_one();
    }
}

bool ThreadPool::take(int64_t *begin, int64_t *end) {
    if (interrupted_.load(std::memory_order_relaxed)) return false;
    *begin = next_.fetch_add(job_.grain, std::memory_order_relaxed);
    if (*begin >= job_.count) return false;
    *end = job_.count - *begin < job_.grain ? job_.count : *begin + job_.grain;
    return true;
}

void ThreadPool::work(int worker) {
    uint64_t seen = 0;
    for (;;) {
        for (int i = 0; i < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++i) pause();
        if (epoch_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleeping_;
            started_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
            --sleeping_;
        }
        seen = epoch_.load(std::memory_order_acquire);
        if (enter()) {
            int64_t begin, end;
            while (take(&begin, &end)) job_.chunk(job_.user, begin, end, worker);
            leave();
        } else {
            std::lock_guard<std::mutex> lock(mutex_);
            if (stopping_) return;
        }
    }
}

bool ThreadPool::run(
    int64_t count, int64_t grain, Chunk chunk, void *user, Interrupt interrupt, void *interrupt_user
) {
    if (count <= 0) return true;
    const bool alone = workers_.empty() || count <= grain;
    job_ = {chunk, user, count, grain};
    next_.store(0, std::memory_order_relaxed);
    interrupted_.store(false, std::memory_order_relaxed);
    if (!alone) {
        bool wake;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            gate_.store(0, std::memory_order_release);
            epoch_.fetch_add(1, std::memory_order_release);
            wake = sleeping_ > 0;
        }
        if (wake) started_.notify_all();
    }
    int64_t begin, end;
    while (take(&begin, &end)) {
        chunk(user, begin, end, 0);
        if (interrupt(interrupt_user)) interrupted_.store(true, std::memory_order_relaxed);
    }
    if (alone) return !interrupted_.load(std::memory_order_relaxed);

    uint32_t inside = gate_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
    for (int i = 0; i < kSpins && inside != kClosed; ++i) {
        pause();
        inside = gate_.load(std::memory_order_acquire);
    }
    while (inside != kClosed) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            finished_.wait_for(lock, kPollInterval, [&] {
                return gate_.load(std::memory_order_acquire) == kClosed;
            });
        }
        if (interrupt(interrupt_user)) interrupted_.store(true, std::memory_order_relaxed);
        inside = gate_.load(std::memory_order_acquire);
    }
    return !interrupted_.load(std::memory_order_relaxed);
}

} // namespace guava

guava_context::guava_context(int threads) : pool(threads), isa(guava::best_isa()) { begin_call(); }

guava_context::~guava_context() {
    delete splat;
    delete pose;
    delete frame;
}

void guava_context::begin_call() {
    cancel_requested = false;
    last_poll = std::chrono::steady_clock::now();
}

bool guava_context::poll_due() {
    if (poll && !cancel_requested) {
        auto now = std::chrono::steady_clock::now();
        if (now - last_poll >= guava::kPollInterval) {
            cancel_requested = poll(poll_user) != 0;
            last_poll = std::chrono::steady_clock::now();
        }
    }
    return cancel_requested;
}

extern "C" {

GUAVA_API int32_t guava_abi_version(void) { return GUAVA_ABI_VERSION; }

#ifndef GUAVA_BUILD_INFO
#define GUAVA_BUILD_INFO "source=unknown compiler=unknown target=unknown"
#endif
GUAVA_API const char *guava_build_info(void) { return GUAVA_BUILD_INFO; }

GUAVA_API guava_context *guava_context_create(int32_t threads) {
    if (threads < 1) return nullptr;
    try {
        return new guava_context(threads);
    } catch (...) { // std::bad_alloc; std::system_error where the system gives no more threads
        return nullptr;
    }
}

GUAVA_API void guava_context_destroy(guava_context *context) { delete context; }

GUAVA_API int32_t guava_context_set_isa(guava_context *context, int32_t isa) {
    if (!context) return GUAVA_INVALID_CALL;
    if (isa == GUAVA_ISA_BEST) isa = guava::best_isa();
    if (!guava_isa_available(isa)) return GUAVA_INVALID_CALL;
    context->isa = isa;
    return GUAVA_OK;
}

GUAVA_API int32_t guava_context_get_isa(const guava_context *context) {
    return context ? context->isa : GUAVA_ISA_BASELINE;
}

GUAVA_API void guava_context_set_poll(guava_context *context, guava_poll poll, void *user) {
    if (!context) return;
    context->poll = poll;
    context->poll_user = user;
}

GUAVA_API size_t guava_context_bytes(const guava_context *context) {
    size_t total = 0;
    if (context)
        for (guava::Workspace *workspace : {context->splat, context->pose, context->frame})
            if (workspace) total += workspace->bytes();
    return total;
}

GUAVA_API void guava_context_trim(guava_context *context) {
    if (!context) return;
    for (guava::Workspace *workspace : {context->splat, context->pose, context->frame})
        if (workspace) workspace->clear();
}

} // extern "C"

// What every native call runs on: a context with its threads, its working memory and its way to be cancelled.
//
//     bool done = guava::parallel_for(context, count, grain, [&](int64_t begin, int64_t end, int worker) {
//         ...
//     });
//
// cuts [0, count) into chunks of `grain` (the last may be shorter) and runs them on the context's threads,
// the calling one included. Which thread takes which chunk is decided while running, but the chunks are
// always the same: a result that is made chunk by chunk does not depend on the number of threads. `worker` <
// context.threads() is for scratch memory. The function must not throw and must not call parallel_for. False:
// the poll function asked to cancel, and some chunks were left out.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "guava_native.h"

namespace guava {

// Memory aligned to cache lines, or in large pages if there is enough of it: the kernels go through it in any
// order, and would miss the TLB at every step. Throws std::bad_alloc.
void *allocate(size_t bytes);
void release(void *memory, size_t bytes);

// Uninitialised memory of trivial things, aligned to cache lines, that grows and never shrinks by itself.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { clear(); }

    // Room for `count`; what was inside is lost if it grows. Throws std::bad_alloc, and is empty then. Never
    // NULL.
    T *reserve(size_t count) {
        if (count > capacity_ || !data_) {
            clear();
            if (count > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
            // A little more, so that a video's slowly growing scenes do not allocate in every frame.
            size_t wanted = count + count / 8 + 16;
            data_ = static_cast<T *>(allocate(wanted * sizeof(T)));
            capacity_ = wanted;
        }
        return data_;
    }
    void clear() {
        if (data_) release(data_, capacity_ * sizeof(T));
        data_ = nullptr;
        capacity_ = 0;
    }
    T *data() { return data_; }
    const T *data() const { return data_; }
    T &operator[](size_t i) { return data_[i]; }
    const T &operator[](size_t i) const { return data_[i]; }
    size_t bytes() const { return capacity_ * sizeof(T); }

  private:
    T *data_ = nullptr;
    size_t capacity_ = 0;
};

// Working memory that a family of kernels keeps in the context between calls.
struct Workspace {
    virtual ~Workspace() = default;
    virtual size_t bytes() const = 0;
    virtual void clear() = 0;
};

// Threads that sleep between calls. Not re-entrant: one job at a time, started by one thread.
class ThreadPool {
  public:
    // A chunk of a job. Must not throw.
    using Chunk = void (*)(void *user, int64_t begin, int64_t end, int worker);
    // Called by the starting thread between its chunks and while it waits; true: leave out what is left.
    using Interrupt = bool (*)(void *user);

    // threads >= 1, the caller's included. Throws std::system_error or std::bad_alloc.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }
    bool run(int64_t count, int64_t grain, Chunk chunk, void *user, Interrupt interrupt,
        void *interrupt_user);

  private:
    struct Job {
        Chunk chunk = nullptr;
        void *user = nullptr;
        int64_t count = 0, grain = 1;
    };
    void work(int worker);
    void stop_workers();
    bool enter();
    void leave();
    bool take(int64_t *begin, int64_t *end);

    Job job_;
    std::atomic<int64_t> next_{0};
    std::atomic<bool> interrupted_{false};
    // Workers inside the job, plus kClosed when no more may enter: the starting thread waits for those inside
    // only, and never for one that the system has not woken yet.
    static constexpr uint32_t kClosed = 1u << 31;
    std::atomic<uint32_t> gate_{kClosed};
    std::atomic<uint64_t> epoch_{0}; // Counts jobs; written under the mutex, so that no sleeper misses one.
    std::mutex mutex_;
    std::condition_variable started_, finished_;
    int sleeping_ = 0;      // under the mutex
    bool stopping_ = false; // under the mutex
    std::vector<std::thread> workers_;
};

} // namespace guava

struct guava_context {
    explicit guava_context(int threads);

    int threads() const { return pool.threads(); }
    // To be called once at the beginning of every ABI function that runs something.
    void begin_call();
    bool cancelled() const { return cancel_requested; }
    // Calls the poll function if the last time was kPollInterval ago.
    bool poll_due();

    guava::ThreadPool pool;
    int32_t isa;
    guava_poll poll = nullptr;
    void *poll_user = nullptr;
    guava::Workspace *splat = nullptr; // owned: made by the first call that needs it
    guava::Workspace *pose = nullptr;
    guava::Workspace *frame = nullptr;
    ~guava_context();

  private:
    std::chrono::steady_clock::time_point last_poll;
    bool cancel_requested = false;
};

namespace guava {

using Context = guava_context;

template <class Function>
bool parallel_for(Context &context, int64_t count, int64_t grain, Function &&function) {
    using F = std::remove_reference_t<Function>;
    if (context.cancelled()) return false;
    return context.pool.run(
        count, grain,
        [](void *user, int64_t begin, int64_t end, int worker) {
            (*static_cast<F *>(user))(begin, end, worker);
        },
        const_cast<void *>(static_cast<const void *>(&function)),
        [](void *user) { return static_cast<Context *>(user)->poll_due(); }, &context);
}

// Milliseconds, for the times of stages.
inline double milliseconds() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

} // namespace guava

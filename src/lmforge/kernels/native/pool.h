// Threads that all run one function, with barriers in it. They wait awake for a moment, then asleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#if defined(_WIN32)
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

struct Team {  // what one thread knows of the run that it takes part in
    int id, size;
    std::atomic<int>* arrived;
    std::atomic<int>* round;
    void barrier() const {
        if (size == 1) return;
        int now = round->load(std::memory_order_acquire);
        if (arrived->fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived->store(0, std::memory_order_relaxed);
            round->store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round->load(std::memory_order_acquire) == now; spins++)
            if (spins > 4000) std::this_thread::yield();
    }
    // this thread's part of `count` things, in whole multiples of `step`
    void share(int64_t count, int64_t step, int64_t* first, int64_t* last) const {
        int64_t parts = (count + step - 1) / step;
        *first = parts * id / size * step;
        *last = parts * (id + 1) / size * step;
        if (*last > count) *last = count;
    }
};

class Pool {
  public:
    // run f(team) on `threads` threads, the caller one of them; alone where another run is under way
    template <class Function> void run(int threads, const Function& f) {
        std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
        if (threads <= 1 || !alone.owns_lock()) {
            std::atomic<int> arrived{0}, round{0};
            f(Team{0, 1, &arrived, &round});
            return;
        }
        if (owner_ != (int)getpid()) {  // a fork: its threads are not here
            workers_ = new std::vector<std::thread>();
            owner_ = (int)getpid();
            ready_.store(0), done_.store(0);
        }
        int before = ready_.load();
        while ((int)workers_->size() < threads - 1) {
            int id = (int)workers_->size() + 1;
            workers_->emplace_back([this, id, before] { work(id, before); });
            workers_->back().detach();
        }
        arrived_.store(0), done_.store(0);
        call_ = [](const void* function, const Team& team) { (*static_cast<const Function*>(function))(team); };
        function_ = &f, size_ = threads;
        {
            std::lock_guard<std::mutex> lock(sleep_);
            ready_.store(before + 1, std::memory_order_release);
        }
        wake_.notify_all();
        f(Team{0, threads, &arrived_, &round_});
        while (done_.load(std::memory_order_acquire) != (int)workers_->size()) std::this_thread::yield();
    }

  private:
    void work(int id, int seen) {
        for (;;) {
            for (int spins = 0; spins < 20000 && ready_.load(std::memory_order_acquire) == seen; spins++) {
            }
            if (ready_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(sleep_);
                wake_.wait(lock, [&] { return ready_.load(std::memory_order_acquire) != seen; });
            }
            seen = ready_.load(std::memory_order_acquire);
            if (id < size_) call_(function_, Team{id, size_, &arrived_, &round_});
            done_.fetch_add(1, std::memory_order_acq_rel);
        }
    }
    std::mutex busy_, sleep_;
    std::condition_variable wake_;
    std::vector<std::thread>* workers_ = new std::vector<std::thread>();
    std::atomic<int> ready_{0}, done_{0}, arrived_{0}, round_{0};
    void (*call_)(const void*, const Team&) = nullptr;
    const void* function_ = nullptr;
    int size_ = 1, owner_ = (int)getpid();
};

// Copyright 2026 The clustr_hf team. Licensed under the Apache License, Version 2.0.
//
// The threads of one call of the clustering kernel.
//
// Where OpenMP is available, they are OpenMP's threads: the ones that torch has just used and that may still be
// spinning on their cores, so that no further threads compete with them. A call is a single parallel region that
// contains all its loops. At the end of a region OpenMP waits for every thread, and on a busy machine a thread that the
// system has suspended returns only after milliseconds; a loop within the region does not wait for threads that have
// not started to work on it.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

class Team {
public:
    // Calls lead(team) on this thread, with a team of at most `size` threads including this one. Rethrows its
    // exceptions.
    static void gather(int size, const std::function<void(Team&)>& lead) {
        Team team(size);
        if (size < 2) return lead(team);
        team.call_members(lead);
        team.rethrow();
    }

    // The largest number of threads.
    int size() const { return max_threads; }

    // Calls body(index, member) once for each index in [0, count), with a member in [0, max_members). A member takes
    // indices in rising order. The first exception of a body ends the loop and is rethrown here.
    void run(int64_t count, const std::function<void(int64_t, int)>& body,
             int max_members = std::numeric_limits<int>::max()) {
        if (std::min(max_threads, max_members) < 2 || count < 2) {
            for (int64_t index = 0; index < count; ++index) body(index, 0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex);
            task = {&body, count, max_members};
            next = 0;
            ++number_of_task;
            is_open = true;
        }
        task_given.notify_all();
        work();
        {
            std::unique_lock<std::mutex> lock(mutex);
            is_open = false;
            all_done.wait(lock, [this] { return working == 0; });
        }
        rethrow();
    }

private:
    struct Task {
        const std::function<void(int64_t, int)>* body = nullptr;
        int64_t count = 0;
        int max_members = 0;
    };

    const int max_threads;
    std::mutex mutex;
    std::condition_variable task_given, all_done;
    // Guarded by the mutex. The task does not change while a member works on it.
    Task task;
    int64_t number_of_task = 0;
    int working = 0;  // members other than the leader
    bool is_open = false, is_over = false;
    std::exception_ptr failure;
    // The next index of the task that no member has taken.
    std::atomic<int64_t> next{0};

    explicit Team(int size) : max_threads(std::max(1, size)) {}

#ifdef _OPENMP
    void call_members(const std::function<void(Team&)>& lead) {
#pragma omp parallel num_threads(max_threads)
        {
            if (omp_get_thread_num() == 0)
                lead_members(lead);
            else
                serve(omp_get_thread_num());
        }
    }
#else
    void call_members(const std::function<void(Team&)>& lead) {
        std::vector<std::thread> threads;
        threads.reserve(max_threads);
        try {
            for (int member = 1; member < max_threads; ++member)
                threads.emplace_back([this, member] { serve(member); });
        } catch (const std::exception&) {  // the system has no more threads, or no memory for them: the team is smaller
        }
        lead_members(lead);
        for (std::thread& thread : threads) thread.join();
    }
#endif

    void lead_members(const std::function<void(Team&)>& lead) {
        attempt([&] { lead(*this); });
        std::lock_guard<std::mutex> lock(mutex);
        is_over = true;
        task_given.notify_all();
    }

    void serve(int member) {
        std::unique_lock<std::mutex> lock(mutex);
        for (int64_t served = 0;;) {
            task_given.wait(lock, [&] { return is_over || number_of_task != served; });
            if (is_over) return;
            served = number_of_task;
            if (!is_open || member >= task.max_members) continue;
            ++working;
            lock.unlock();
            work(member);
            lock.lock();
            if (--working == 0) all_done.notify_one();
        }
    }

    void work(int member = 0) {
        attempt([&] {
            for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < task.count;)
                (*task.body)(index, member);
        });
    }

    // No exception may leave a thread or a parallel region.
    template <class Function>
    void attempt(const Function& function) {
        try {
            function();
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
            next = task.count;
        }
    }

    void rethrow() {
        if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
    }
};

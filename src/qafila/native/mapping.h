// Mapped memory with an owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "system.h"

namespace qafila {

constexpr std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

// Zeroed, 64-byte aligned, committed when touched. Throws std::bad_alloc where there is none.
class Mapping {
public:
    Mapping() = default;
    explicit Mapping(std::size_t bytes) : data_(map_memory(bytes)), bytes_(bytes) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    Mapping(Mapping&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Mapping() { unmap_memory(data_, bytes_); }

    std::uint8_t* data() const { return static_cast<std::uint8_t*>(data_); }
    std::size_t bytes() const { return bytes_; }

private:
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

// Cuts one mapping into arrays: first a pass that only counts, with `base` null, then one that places.
class Layout {
public:
    explicit Layout(std::uint8_t* base) : base_(base) {}

    template <typename T>
    void place(T*& array, std::size_t count) {
        if (base_ != nullptr) array = count > 0 ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
        bytes_ += round_up(count * sizeof(T), 64);
    }
    std::size_t bytes() const { return bytes_; }

private:
    std::uint8_t* base_;
    std::size_t bytes_ = 0;
};

}  // namespace qafila

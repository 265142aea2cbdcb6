// Everything that asks the operating system; the only file pair with system headers in it.
#pragma once

#include <cstddef>

namespace qafila {

// Zeroed memory, at least 64-byte aligned, in large pages where the system gives them, committed when touched. Null where
// there is none.
void* map_memory(std::size_t bytes);
void unmap_memory(void* memory, std::size_t bytes);

// Tells the system that mapped file pages wholly inside the range are not needed for now (they come back when touched).
void drop_pages(const void* memory, std::size_t bytes);

// Whether the calling thread now runs on that processor only.
bool pin_thread(int cpu);

// Gives the processor to another thread.
void yield_thread();

}  // namespace qafila

// Entries of the table of kernels: the argument list of each is unpacked by a template, so that a source needs no line of
// its own for it.
#pragma once

#include <utility>

#include "run.h"

namespace kolo {

template <auto kernel> struct Entry;

template <typename... Parameters, void (*kernel)(Parameters...)> struct Entry<kernel> {
    static constexpr uint32_t parameters = sizeof...(Parameters);
    // One more than there are, since an array must have something in it.
    static constexpr uint32_t sizes[] = {sizeof(Parameters)..., 0};

    static void call(void **arguments) { unpack(arguments, std::index_sequence_for<Parameters...>()); }

  private:
    template <size_t... at> static void unpack([[maybe_unused]] void **arguments, std::index_sequence<at...>) {
        kernel(*static_cast<Parameters *>(arguments[at])...);
    }
};

} // namespace kolo

// The linker puts the entries of all sources next to each other. Their size and their alignment are the same.
static_assert(sizeof(kolo_kernel) == 32, "entries are found by their size");
#define KOLO_TABLE(name)                                                                                               \
    __attribute__((section("kolo_table"), used, aligned(32))) static kolo_kernel kolo_entry_##name = {                 \
        #name, kolo::Entry<name>::call, kolo::Entry<name>::sizes, kolo::Entry<name>::parameters};

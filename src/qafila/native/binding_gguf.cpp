// Reading a GGUF file's vocabulary in bulk. The bytes are a stranger's: every length is checked before it is followed.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "merge_order.h"

namespace nb = nanobind;

namespace qafila {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The array of `count` strings (a little-endian u64 length, then bytes) at `position`, and where it ends; None where it
// runs over `limit`. Bytes that are no UTF-8 become lone surrogates, as Python's surrogateescape makes them.
nb::object read_strings(Bytes data, std::size_t position, std::size_t limit, std::size_t count) {
    if (limit > data.size() || position > limit) throw std::invalid_argument("the limit is not within the data");
    const std::uint8_t* bytes = data.data();
    const auto length_at = [bytes](std::size_t at) {
        std::uint64_t length = 0;
        for (int i = 7; i >= 0; --i) length = length << 8 | bytes[at + static_cast<std::size_t>(i)];
        return length;
    };
    // First whether all of it is there, so that a count which is a lie costs no memory.
    std::size_t end = position;
    for (std::size_t i = 0; i < count; ++i) {
        if (limit - end < 8) return nb::none();
        const std::uint64_t length = length_at(end);
        end += 8;
        if (length > limit - end) return nb::none();
        end += static_cast<std::size_t>(length);
    }
    nb::object strings = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(count)));
    if (!strings.is_valid()) nb::raise_python_error();
    std::size_t at = position;
    for (std::size_t i = 0; i < count; ++i) {
        const auto length = static_cast<std::size_t>(length_at(at));
        at += 8;
        const char* text = reinterpret_cast<const char*>(bytes + at);
        PyObject* string = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), "surrogateescape");
        if (string == nullptr) nb::raise_python_error();
        PyTuple_SetItem(strings.ptr(), static_cast<Py_ssize_t>(i), string);
        at += length;
    }
    return nb::make_tuple(strings, end);
}

// The UTF-8 of every string; false where one is no str, or has no UTF-8. The views live as long as the strings.
bool views_of(const nb::tuple& strings, std::vector<std::string_view>& views) {
    const std::size_t count = nb::len(strings);
    views.reserve(count);
    for (nb::handle item : strings) {
        Py_ssize_t size = 0;
        const char* text = PyUnicode_Check(item.ptr()) ? PyUnicode_AsUTF8AndSize(item.ptr(), &size) : nullptr;
        if (text == nullptr) {
            PyErr_Clear();
            return false;
        }
        views.emplace_back(text, static_cast<std::size_t>(size));
    }
    return true;
}

nb::list unspell_tokens(nb::sequence tokens) {
    const ByteAlphabet alphabet;
    nb::list result;
    std::string bytes;
    for (nb::handle item : tokens) {
        Py_ssize_t size = 0;
        const char* text = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
        if (text == nullptr) nb::raise_python_error();
        bytes.clear();
        if (unspell(alphabet, std::string_view(text, static_cast<std::size_t>(size)), bytes))
            result.append(nb::bytes(bytes.data(), bytes.size()));
        else
            result.append(nb::none());
    }
    return result;
}

nb::list as_list(const std::vector<std::int32_t>& values) {
    nb::list result;
    for (const std::int32_t value : values) result.append(value);
    return result;
}

nb::object order_of_merges(nb::list tokens, nb::sequence merges) {
    std::vector<std::string_view> known, pairs;
    known.reserve(nb::len(tokens));
    for (nb::handle item : tokens) {
        if (!PyBytes_Check(item.ptr())) throw nb::type_error("tokens must be bytes");
        known.emplace_back(PyBytes_AsString(item.ptr()), static_cast<std::size_t>(PyBytes_Size(item.ptr())));
    }
    constexpr auto most = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());
    const nb::tuple held(merges);  // keeps what the views look at
    MergeOrder result;
    if (!views_of(held, pairs) || known.size() > most || pairs.size() > most || !merge_order(known, pairs, result))
        return nb::none();
    return nb::make_tuple(as_list(result.order), as_list(result.unbuilt));
}

}  // namespace

void bind_gguf(nb::module_& m) {
    using namespace nb::literals;
    m.def("read_strings", &read_strings, "data"_a.noconvert(), "position"_a, "limit"_a, "count"_a,
          "An array of GGUF strings and where it ends; None where it runs over the limit.");
    m.def("unspell", &unspell_tokens, "tokens"_a, "The bytes that each token spells in GPT-2's alphabet, or None.");
    m.def("merge_order", &order_of_merges, "tokens"_a, "merges"_a,
          "Ids in the order of their merges, and those that merging does not build; None where that is not so simple.");
}

}  // namespace qafila

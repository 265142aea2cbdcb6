#include "merge_order.h"

#include <string>

namespace qafila {
namespace {

constexpr std::size_t kMaxBytes = 256;
constexpr std::int32_t kNone = -1;

std::uint64_t mixed(std::uint64_t x) {  // the finaliser of MurmurHash3
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

std::size_t table_size(std::size_t entries) {
    std::size_t size = 16;
    while (size < 2 * entries) size *= 2;
    return size;
}

// Tokens by their bytes. Slots hold the id and part of the hash: most misses are told without reading the token.
class TokenTable {
public:
    explicit TokenTable(const std::vector<std::string_view>& tokens)
        : tokens_(tokens), slots_(table_size(tokens.size()), Slot{0, kNone}), mask_(slots_.size() - 1) {}

    static std::uint64_t hash(std::string_view text) {  // FNV-1a, finished
        std::uint64_t h = 0xcbf29ce484222325ULL;
        for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
        return mixed(h);
    }

    bool add(std::int32_t id) {
        const std::string_view text = tokens_[static_cast<std::size_t>(id)];
        const std::uint64_t h = hash(text);
        Slot& slot = find_slot(text, h);
        if (slot.id != kNone) return false;
        slot = Slot{static_cast<std::uint32_t>(h >> 32), id};
        return true;
    }

    std::int32_t find(std::string_view text) { return find_slot(text, hash(text)).id; }

private:
    struct Slot {
        std::uint32_t tag;
        std::int32_t id;
    };
    Slot& find_slot(std::string_view text, std::uint64_t h) {
        const auto tag = static_cast<std::uint32_t>(h >> 32);
        for (std::size_t at = h & mask_;; at = (at + 1) & mask_) {
            Slot& slot = slots_[at];
            if (slot.id == kNone || (slot.tag == tag && tokens_[static_cast<std::size_t>(slot.id)] == text)) return slot;
        }
    }
    const std::vector<std::string_view>& tokens_;
    std::vector<Slot> slots_;
    std::size_t mask_;
};

// What two neighbouring tokens become, and how soon.
class PairTable {
public:
    struct Merge {
        std::uint64_t pair;
        std::int32_t rank;
        std::int32_t made;
    };
    explicit PairTable(std::size_t merges)
        : slots_(table_size(merges), Merge{0, kNone, kNone}), mask_(slots_.size() - 1) {}

    static std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
        return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
    }

    bool add(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t made) {
        Merge& slot = find_slot(pair_of(left, right));
        if (slot.rank != kNone) return false;
        slot = Merge{pair_of(left, right), rank, made};
        return true;
    }

    const Merge& find(std::int32_t left, std::int32_t right) { return find_slot(pair_of(left, right)); }

private:
    Merge& find_slot(std::uint64_t pair) {
        for (std::size_t at = mixed(pair) & mask_;; at = (at + 1) & mask_)
            if (slots_[at].rank == kNone || slots_[at].pair == pair) return slots_[at];
    }
    std::vector<Merge> slots_;
    std::size_t mask_;
};

// Whether merging makes one token of `parts` (changed on the way): the best-ranked pair first, the leftmost of equals.
bool becomes_one(PairTable& pairs, std::vector<std::int32_t>& parts, std::vector<PairTable::Merge>& next) {
    next.clear();
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) next.push_back(pairs.find(parts[i], parts[i + 1]));
    while (parts.size() > 1) {
        std::size_t best = next.size();
        for (std::size_t i = 0; i < next.size(); ++i)
            if (next[i].rank != kNone && (best == next.size() || next[i].rank < next[best].rank)) best = i;
        if (best == next.size()) return false;
        parts[best] = next[best].made;
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
        next.erase(next.begin() + static_cast<std::ptrdiff_t>(best));
        if (best > 0) next[best - 1] = pairs.find(parts[best - 1], parts[best]);
        if (best < next.size()) next[best] = pairs.find(parts[best], parts[best + 1]);
    }
    return true;
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
    for (auto& value : byte) value = -1;
    std::uint16_t hidden = 256;
    for (int b = 0; b < 256; ++b) {
        const bool shown = (b >= 0x21 && b < 0x7F) || (b >= 0xA1 && b < 0xAD) || b >= 0xAE;
        letter[b] = shown ? static_cast<std::uint16_t>(b) : hidden++;
        byte[letter[b]] = static_cast<std::int16_t>(b);
    }
}

bool unspell(const ByteAlphabet& alphabet, std::string_view text, std::string& bytes) {
    for (std::size_t i = 0; i < text.size(); ++i) {
        auto code = static_cast<unsigned>(static_cast<unsigned char>(text[i]));
        if (code >= 0x80) {  // two bytes reach U+07FF, and the alphabet ends at U+0143
            if (code >= 0xE0 || ++i == text.size()) return false;
            code = (code & 0x1F) << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
        }
        if (code >= 0x144 || alphabet.byte[code] < 0) return false;
        bytes.push_back(static_cast<char>(alphabet.byte[code]));
    }
    return true;
}

bool merge_order(const std::vector<std::string_view>& tokens, const std::vector<std::string_view>& merges,
                 MergeOrder& result) {
    TokenTable table(tokens);
    for (std::size_t i = 0; i < tokens.size(); ++i)
        if (!tokens[i].empty() && !table.add(static_cast<std::int32_t>(i))) return false;
    std::int32_t single[256];
    for (int b = 0; b < 256; ++b) {
        const char byte = static_cast<char>(b);
        single[b] = table.find(std::string_view(&byte, 1));
    }
    const ByteAlphabet alphabet;
    PairTable pairs(merges.size());
    std::vector<bool> made(tokens.size(), false);
    std::int32_t last = kNone;
    std::string bytes;
    for (std::size_t i = 0; i < merges.size(); ++i) {
        const std::string_view merge = merges[i];
        const std::size_t space = merge.find(' ');
        if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) return false;
        bytes.clear();
        if (!unspell(alphabet, merge.substr(0, space), bytes)) return false;
        const std::size_t cut = bytes.size();
        if (!unspell(alphabet, merge.substr(space + 1), bytes)) return false;
        if (cut == 0 || cut == bytes.size() || bytes.size() > kMaxBytes) return false;
        const std::string_view whole = bytes;
        const std::int32_t left = table.find(whole.substr(0, cut)), right = table.find(whole.substr(cut));
        const std::int32_t token = table.find(whole);
        if (left == kNone || right == kNone || token == kNone) return false;
        if (!pairs.add(left, right, static_cast<std::int32_t>(i), token)) return false;
        if (!made[static_cast<std::size_t>(token)]) {
            made[static_cast<std::size_t>(token)] = true;
            result.order.push_back(token);
        } else if (token != last) {
            return false;
        }
        last = token;
    }
    std::vector<std::int32_t> parts;
    std::vector<PairTable::Merge> next;
    for (const std::int32_t token : result.order) {
        parts.clear();
        for (const char c : tokens[static_cast<std::size_t>(token)]) {
            parts.push_back(single[static_cast<unsigned char>(c)]);
            if (parts.back() == kNone) return false;
        }
        if (!becomes_one(pairs, parts, next)) result.unbuilt.push_back(token);
    }
    return true;
}

}  // namespace qafila

"""Hosts of URLs as browsers see them, and their look-up, with their parent domains, in a list of domains."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from danqing.engine.core.strings import Strings
from danqing.kernels.compiled import cached
from danqing.kernels.portable import ArrayLauncher, inlined, kernel, resident, workspace
from danqing.kernels.text.ascii import hex_digit, is_digit, is_letter, lower
from danqing.kernels.text.trie import EMPTY, GOLDEN, Index

MAX_HOST = 253
"""Characters of the longest name in the DNS."""
UNDECIDED = -1
"""Length of a host that the kernel leaves to `engine.stages.hosts.host_of`, and result of its look-up."""
ADDRESS_BYTES = 16
"""Memory for an IPv4 address, which can be longer than the URL: `//1` is 0.0.0.1."""
HASH_SEED, HASH_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
HALF = np.uint64(32)
ENTRY = (1 << 32) - 1


class Hosts(NamedTuple):
    """The hosts of rows; row i is data[begins[i]:begins[i] + lengths[i]].

    Attributes:
        begins: int64 (rows,).
        lengths: int32 (rows,); 0 without a host, `UNDECIDED` for hosts in other scripts than ASCII and IPv6 addresses.
        data: uint8.
    """

    begins: Any
    lengths: Any
    data: Any


class Domains(NamedTuple):
    """A set of domains as a hash table with open addressing.

    Attributes:
        slots: int64 (2^k,): the high half of an entry is the low half of the domain's hash, the low half its position;
            unused entries are `EMPTY`.
        offsets: int64 (domains + 1,), of the domains in `data`.
        data: uint8, the domains' bytes, so that two domains with one hash are told apart.
    """

    slots: np.ndarray
    offsets: np.ndarray
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return sum(array.nbytes for array in self)


def build_domains(domains: pa.LargeStringArray) -> Domains:
    """Makes the table of distinct domains, in host memory; it uses the memory of the Arrow array."""
    text = Strings.of(domains)
    slots = np.full(1 << max(4, (2 * text.rows).bit_length()), EMPTY, np.int64)  # at most half full: short probes
    _insert(slots, text.offsets, text.data)
    return Domains(slots, text.offsets, text.data)


@cached(njit)
def _insert(slots: np.ndarray, offsets: np.ndarray, data: np.ndarray) -> None:
    for row in range(offsets.size - 1):
        value = HASH_SEED
        for at in range(offsets[row + 1] - 1, offsets[row] - 1, -1):
            value = extend(value, data[at])
        slot = first_slot(slots, value)
        while slots[slot] != EMPTY:
            slot = (slot + 1) & (slots.size - 1)
        slots[slot] = tag(value) | row


def listed_hosts(device: ArrayLauncher, hosts: list[str]) -> Hosts:
    """Copies hosts in lower case and punycode to the device."""
    lengths = np.array([len(host) for host in hosts], np.int32)
    data = np.frombuffer(bytearray("".join(hosts).encode()), np.uint8)
    return Hosts(device.up(np.cumsum(lengths, dtype=np.int64) - lengths), device.up(lengths), device.up(data))


def find_hosts(device: ArrayLauncher, urls: Strings) -> Hosts:
    """Finds the host of each URL, equal to `engine.stages.hosts.host_of` except for `UNDECIDED` ones.

    Args:
        device: holds the URLs.
        urls: the rows; a missing URL is an empty row.

    Returns:
        The hosts, in scratch memory of the calling thread: they are valid until its next call.
    """
    xp, rows = device.xp, urls.rows
    offsets = urls.offsets.astype(np.int64, copy=False)
    begins = offsets[:-1] - offsets[0] + ADDRESS_BYTES * xp.arange(rows)
    lengths = xp.empty(rows, np.int32)
    data = workspace(device, "hosts", urls.size + ADDRESS_BYTES * rows, np.uint8)
    find_host_rows.launch(device, rows, offsets, urls.data, begins, lengths, data)
    return Hosts(begins, lengths, data)


def find_domains(device: ArrayLauncher, hosts: Hosts, domains: Domains) -> Any:
    """Looks up each host and its parent domains.

    Args:
        device: holds the hosts.
        hosts: in lower case and punycode.
        domains: the table, in host memory.

    Returns:
        int8 (rows,), on the device: 1 if the host or one of its parents is in the table, else 0; `UNDECIDED` for hosts
        of that length.
    """
    found = device.xp.empty(len(hosts.lengths), np.int8)
    table = resident(device, domains)
    find_domain_rows.launch(device, len(found), hosts.begins, hosts.lengths, hosts.data, *table, found)
    return found


@kernel
def find_host_rows(first, last, step, offsets, urls, begins, lengths, hosts):
    """Writes the host of each URL to `hosts` and its length to `lengths`."""
    for row in range(first, last, step):
        start = begins[row]
        stop = copy_authority(urls, offsets[row], offsets[row + 1], hosts, start)
        lengths[row] = normalize_host(hosts, start, stop)


@inlined
def copy_authority(urls, start, stop, out, begin):
    """Copies a URL's host and port to out[begin:], without what browsers remove; returns the position after them."""
    start, stop = strip(urls, start, stop)
    # Without tabs and line ends, up to the query or the fragment: neither is in a scheme or a host.
    end = begin
    for at in range(start, stop):
        byte = urls[Index(at)]
        if byte == 0x3F or byte == 0x23:  # ? #
            break
        if byte != 9 and byte != 10 and byte != 13:
            out[Index(end)] = byte
            end += 1
    at = skip_scheme(out, begin, end)
    host, stop = at, at
    while stop < end and not is_slash(out[Index(stop)]):
        stop += 1
        if out[Index(stop - 1)] == 0x40:  # @ ends the user's name and password
            host = stop
    size = stop - host
    for number in range(size):
        out[Index(begin + number)] = out[Index(host + number)]
    return begin + size


@inlined
def strip(urls, start, stop):
    """Returns the range without control characters, spaces, U+00A0, U+3000 and U+FEFF at its ends."""
    size = 1
    while start < stop and size > 0:
        size = blank_size(urls, start, stop)
        start += size
    while start < stop:
        if urls[stop - 1] <= 32:
            stop -= 1
        elif stop - start >= 2 and blank_size(urls, stop - 2, stop) == 2:
            stop -= 2
        elif stop - start >= 3 and blank_size(urls, stop - 3, stop) == 3:
            stop -= 3
        else:
            break
    return start, stop


@inlined
def blank_size(urls, at, stop):
    """Returns the bytes of the blank character at a position, or 0."""
    lead = urls[at]
    if lead <= 32:
        return 1
    if lead == 0xC2 and at + 1 < stop and urls[at + 1] == 0xA0:
        return 2
    if at + 2 < stop:
        second, third = urls[at + 1], urls[at + 2]
        if (lead == 0xE3 and second == 0x80 and third == 0x80) or (lead == 0xEF and second == 0xBB and third == 0xBF):
            return 3
    return 0


@inlined
def is_slash(byte):
    """Whether browsers read a byte as a slash."""
    return byte == 0x2F or byte == 0x5C


@inlined
def skip_scheme(url, start, stop):
    """Returns the position after the scheme and the slashes."""
    colon = start
    while colon < stop:
        byte = url[Index(colon)]
        inside = colon > start and (is_digit(byte) or byte == 0x2B or byte == 0x2D or byte == 0x2E)
        if not (inside or is_letter(byte)):
            break
        colon += 1
    has_scheme = colon > start and colon < stop and url[Index(colon)] == 0x3A
    after = colon + 1 if has_scheme else start
    at = after
    while at < stop and is_slash(url[Index(at)]):
        at += 1
    if has_scheme:
        if is_special(url, start, colon):
            return at
        return min(at, after + 2) if at - after >= 2 else start
    return at if at - after >= 2 else start


@inlined
def is_special(url, start, stop):
    """Whether a scheme is http, https, ws, wss or ftp, after which browsers accept any number of slashes."""
    key = np.int64(0)
    if stop - start > 5:
        return False
    for at in range(start, stop):
        key = key << 8 | np.int64(lower(url[Index(at)]))
    return key == 0x68747470 or key == 0x6874747073 or key == 0x7773 or key == 0x777373 or key == 0x667470


@inlined
def normalize_host(host, start, stop):
    """Writes host[start:stop], which may have a port, in lower case without percent-encoding; returns its length."""
    if start == stop:
        return np.int32(0)
    if host[Index(start)] == 0x5B:  # [ of an IPv6 address
        return np.int32(UNDECIDED)
    end, at = start, start
    in_ascii, allowed = True, True
    while at < stop and host[Index(at)] != 0x3A:
        byte = np.int32(host[Index(at)])
        if byte == 0x25 and at + 2 < stop:
            high, low = hex_digit(host[Index(at + 1)]), hex_digit(host[Index(at + 2)])
            if high >= 0 and low >= 0:
                byte = high << 4 | low
                at += 2
        in_ascii = in_ascii and byte < 0x80
        byte = lower(byte)
        allowed = allowed and not is_forbidden(byte)
        host[Index(end)] = byte
        end += 1
        at += 1
    while at + 1 < stop:
        at += 1
        if not is_digit(host[Index(at)]):  # of the port
            return np.int32(0)
    if not in_ascii:
        return np.int32(UNDECIDED)
    if end > start and host[Index(end - 1)] == 0x2E:
        end -= 1
    if end == start or not allowed:
        return np.int32(0)
    label, full = end, True
    while label > start and host[Index(label - 1)] != 0x2E:
        label -= 1
    if read_number(host, label, end) != NO_NUMBER:
        return np.int32(write_address(host, start, end))
    for at in range(start, end):
        full = full and not (host[Index(at)] == 0x2E and (at == start or host[Index(at - 1)] == 0x2E))
    if label == end or not full or end - start > MAX_HOST:
        return np.int32(0)
    return np.int32(end - start)


@inlined
def is_forbidden(byte):
    """Whether the URL standard forbids an ASCII character in a domain."""
    return (
        byte <= 0x20
        or byte == 0x23  # #
        or byte == 0x25  # %
        or byte == 0x2F  # /
        or byte == 0x3A  # :
        or byte == 0x3C  # <
        or byte == 0x3E  # >
        or byte == 0x3F  # ?
        or byte == 0x40  # @
        or (byte >= 0x5B and byte <= 0x5E)  # [ \ ] ^
        or byte == 0x7C  # |
        or byte == 0x7F
    )


NO_NUMBER, WRONG_NUMBER = -1, -2


@inlined
def read_number(host, start, stop):
    """Returns the number of a part of an IPv4 address; larger ones are 2^32.

    `NO_NUMBER`: the part is a name; `WRONG_NUMBER`: it has the form of a number, but 8 or 9 after a leading 0.
    """
    if start == stop:
        return np.int64(NO_NUMBER)
    base = np.int64(10)
    if host[Index(start)] == 0x30 and stop - start > 1:
        base = np.int64(8)
        start += 1
        if host[Index(start)] == 0x78:
            base = np.int64(16)
            start += 1
    value, wrong = np.int64(0), False
    for at in range(start, stop):
        digit = np.int64(hex_digit(host[Index(at)]))
        if digit < 0 or (base < 16 and digit > 9):
            return np.int64(NO_NUMBER)
        wrong = wrong or digit >= base
        value = min(value * base + digit, np.int64(1) << 32)
    return np.int64(WRONG_NUMBER) if wrong else value


@inlined
def write_address(host, start, stop):
    """Replaces the numbers of an IPv4 address by its four bytes; returns the length, or 0 if it is none."""
    address, parts, at = np.int64(0), 0, start
    while at <= stop:
        begin = at
        while at < stop and host[Index(at)] != 0x2E:
            at += 1
        value = read_number(host, begin, at)
        parts += 1
        room = np.int64(1) << 8 * (5 - parts) if at == stop else np.int64(256)
        if parts > 4 or value < 0 or value >= room:
            return 0
        address = address << 8 * (5 - parts) | value if at == stop else address << 8 | value
        at += 1
    end = start
    for number in range(4):
        byte = address >> 8 * (3 - number) & 0xFF
        if byte >= 100:
            host[Index(end)] = 0x30 + byte // 100
            end += 1
        if byte >= 10:
            host[Index(end)] = 0x30 + byte // 10 % 10
            end += 1
        host[Index(end)] = 0x30 + byte % 10
        host[Index(end + 1)] = 0x2E
        end += 2
    return end - 1 - start


@kernel
def find_domain_rows(first, last, step, begins, lengths, hosts, slots, offsets, data, found):
    """Writes 1 for each host that is, or whose parent is, in the table, else 0."""
    for row in range(first, last, step):
        begin, end = begins[row], begins[row] + lengths[row]
        result = lengths[row] if lengths[row] < 0 else np.int32(0)
        value = HASH_SEED
        at = end
        while at > begin and result == 0:  # from the right, so that each parent's hash is extended to the next
            at -= 1
            value = extend(value, hosts[Index(at)])
            if at == begin or hosts[Index(at - 1)] == 0x2E:
                result = np.int32(contains(slots, offsets, data, hosts, at, end, value))
        found[row] = result


@inlined
def contains(slots, offsets, data, hosts, start, stop, value):
    """Whether hosts[start:stop], whose hash is `value`, is in the table."""
    slot, mark = first_slot(slots, value), tag(value)
    entry = slots[Index(slot)]
    while entry != EMPTY:
        if entry & ~ENTRY == mark:
            begin = offsets[Index(entry & ENTRY)]
            size = offsets[Index((entry & ENTRY) + 1)] - begin
            at = 0
            if size == stop - start:
                while at < size and data[Index(begin + at)] == hosts[Index(start + at)]:
                    at += 1
                if at == size:
                    return 1
        slot = (slot + 1) & (slots.size - 1)
        entry = slots[Index(slot)]
    return 0


@inlined
def extend(value, byte):
    """Returns the hash of a text with one more byte before it."""
    return (value ^ np.uint64(byte)) * HASH_PRIME


@inlined
def first_slot(slots, value):
    """Returns the first position to probe for a hash."""
    return np.int64((value ^ value >> HALF) * GOLDEN >> HALF) & (slots.size - 1)


@inlined
def tag(value):
    """Returns the part of a hash that entries hold."""
    return np.int64(value & np.uint64(0x7FFFFFFF)) << 32

#include "arrays.h"

#include <cstring>
#include <string>

namespace baton::binding {
namespace {

std::string text_of(nb::handle object) {
  const nb::str text = nb::steal<nb::str>(PyObject_Str(object.ptr()));
  return text.is_valid() ? text.c_str() : "?";
}

std::string describe(const nb::object& array) {
  const nb::object name = array.type().attr("__name__");
  std::string text = text_of(name);
  if (nb::hasattr(array, "dtype") && nb::hasattr(array, "shape")) {
    const nb::object dtype = array.attr("dtype");
    const nb::object shape = array.attr("shape");
    text += " of " + text_of(dtype) + " " + text_of(shape);
  }
  return text;
}

[[noreturn]] void refuse(const nb::object& array, const char* name, const char* wanted) {
  throw nb::value_error((std::string(name) + " is a " + describe(array) +
                         ": must be a C-contiguous numpy array, " + wanted)
                            .c_str());
}

// Any array, then checked by hand: an error of ours says more than a failed overload.
using AnyArray = nb::ndarray<nb::ro>;

bool fits(const AnyArray& array, nb::dlpack::dtype dtype, std::size_t dimensions) {
  if (array.dtype() != dtype || array.ndim() != dimensions) return false;
  if (array.device_type() != nb::device::cpu::value) return false;
  std::int64_t stride = 1;
  for (std::size_t i = dimensions; i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != stride) return false;
    stride *= static_cast<std::int64_t>(array.shape(i));
  }
  return true;
}

template <class Scalar>
std::span<const Scalar> vector(const nb::object& object, const char* name, const char* wanted) {
  AnyArray array;
  if (!nb::try_cast(object, array, /*convert=*/false) || !fits(array, nb::dtype<Scalar>(), 1)) {
    refuse(object, name, wanted);
  }
  // The caller's object outlives the call that uses the span.
  return {static_cast<const Scalar*>(array.data()), array.shape(0)};
}

}  // namespace

std::span<const Token> int32_vector(const nb::object& array, const char* name) {
  return vector<Token>(array, name, "int32 [n]");
}

std::span<const std::uint8_t> uint8_vector(const nb::object& array, const char* name) {
  return vector<std::uint8_t>(array, name, "uint8 [n]");
}

std::vector<Digest> digests(const nb::object& object, const char* name) {
  AnyArray array;
  if (!nb::try_cast(object, array, /*convert=*/false) ||
      !fits(array, nb::dtype<std::uint8_t>(), 2) || array.shape(1) != sizeof(Digest)) {
    refuse(object, name, "uint8 [n, 16]");
  }
  std::vector<Digest> digests(array.shape(0));
  if (!digests.empty()) std::memcpy(digests.data(), array.data(), digests.size() * sizeof(Digest));
  return digests;
}

SipKey sip_key(const nb::bytes& key) {
  if (key.size() != sizeof(SipKey)) {
    throw nb::value_error(
        ("key has " + std::to_string(key.size()) + " bytes: must have 16").c_str());
  }
  SipKey sip;
  std::memcpy(&sip, key.c_str(), sizeof(sip));
  return sip;
}

}  // namespace baton::binding

// A test harness of one header, so that the tests build wherever the core does: a compiler is all.
//
//   TEST(pool_gives_pages_back) { CHECK(pool.free() == 4); CHECK_EQ(a, b); }
//
// A failed check reports and ends its test. `main` runs all tests, or those whose name contains
// the first argument.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace check {

struct Failure {
  std::string text;
};

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::ostringstream text;
  text << file << ":" << line << ": " << what;
  throw Failure{text.str()};
}

template <class T>
void print(std::ostream& out, const T& value) {
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else if constexpr (requires { out << value; }) {
    out << value;
  } else if constexpr (requires { value.begin(); }) {
    out << "[";
    for (const auto& each : value) {
      print(out, each);
      out << " ";
    }
    out << "]";
  } else {
    out << "?";
  }
}

template <class A, class B>
void equal(const char* file, int line, const char* text, const A& a, const B& b) {
  bool same;
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    same = std::cmp_equal(a, b);
  } else {
    same = a == b;
  }
  if (same) return;
  std::ostringstream out;
  out << text << ": ";
  print(out, a);
  out << " is not ";
  print(out, b);
  fail(file, line, out.str());
}

inline int run(int argc, char** argv) {
  int failed = 0, ran = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    ++ran;
    try {
      test.body();
    } catch (const Failure& failure) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name, failure.text.c_str());
    }
  }
  std::printf("%d tests, %d failed\n", ran, failed);
  return failed || !ran ? 1 : 0;
}

}  // namespace check

#define TEST(name)                                               \
  static void name();                                            \
  static const check::Registration register_##name(#name, name); \
  static void name()
#define CHECK(condition) \
  if (!(condition)) check::fail(__FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) check::equal(__FILE__, __LINE__, #a " == " #b, a, b)

// The one table of (state, event): accept, ignore or reject. A missing or doubled cell does not
// compile, and neither does a cell that disagrees with the transitions the types in request.h have.
//
// Events from outside are answered by it; documentation, must-fail tests and the explorer's
// alphabet are printed from it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "baton/events.h"
#include "baton/request.h"

namespace baton {

enum class Reply : std::uint8_t { kAccepted, kIgnored, kRejected };

// Order of `State`'s alternatives.
inline constexpr std::array<std::string_view, 9> kStateNames = {
    "Queued", "Fetching",  "Prefilling", "Prefilled", "Decoding",
    "Parked", "Retracted", "Draining",   "Finished"};
static_assert(kStateNames.size() == std::variant_size_v<State>);

using Events =
    std::tuple<AdmittedToFetch, AdmittedToCompute, PagesArrived, FetchGaveUp, FetchCompleted,
               ChunkComputed, PromptComputed, PromptHandedOut, Drafted, TokenSampled, Stopped,
               TurnParked, ParkSettled, ParkRenewed, Forked, Resumed, Demoted, Retract, HandedOver,
               HoldExpired, DeadlinePassed, Cancelled, Settled>;
inline constexpr std::array<std::string_view, 23> kEventNames = {
    "AdmittedToFetch", "AdmittedToCompute", "PagesArrived",    "FetchGaveUp", "FetchCompleted",
    "ChunkComputed",   "PromptComputed",    "PromptHandedOut", "Drafted",     "TokenSampled",
    "Stopped",         "TurnParked",        "ParkSettled",     "ParkRenewed", "Forked",
    "Resumed",         "Demoted",           "Retract",         "HandedOver",  "HoldExpired",
    "DeadlinePassed",  "Cancelled",         "Settled"};
static_assert(kEventNames.size() == std::tuple_size_v<Events>);

// Events that callers raise at any time, hence any state must have an answer ready.
inline constexpr std::array<std::string_view, 7> kExternalEvents = {
    "Drafted",     "PagesArrived", "FetchGaveUp", "FetchCompleted",
    "ParkRenewed", "HandedOver",   "Cancelled"};

namespace table_detail {

template <class T, class... Ts>
consteval std::size_t index_in(std::type_identity<std::variant<Ts...>>) {
  std::size_t index = 0;
  (void)((std::is_same_v<T, Ts> ? false : (++index, true)) && ...);
  return index;
}
template <class T, class... Ts>
consteval std::size_t index_in(std::type_identity<std::tuple<Ts...>>) {
  std::size_t index = 0;
  (void)((std::is_same_v<T, Ts> ? false : (++index, true)) && ...);
  return index;
}

template <class S, class E>
concept Leaves = requires(S&& s, E&& e) { std::move(s).on(std::move(e)); };
template <class S, class E>
concept Stays = requires(S& s, E&& e) { s.on(std::move(e)); };

}  // namespace table_detail

template <class S>
inline constexpr std::size_t kStateIndex = table_detail::index_in<S>(std::type_identity<State>{});
template <class E>
inline constexpr std::size_t kEventIndex = table_detail::index_in<E>(std::type_identity<Events>{});

// Whether the type S has a transition for E.
template <class S, class E>
concept Takes = table_detail::Leaves<S, E> || table_detail::Stays<S, E>;

struct TransitionTable {
  using Row = std::array<Reply, kEventNames.size()>;
  std::array<Row, kStateNames.size()> cells;

  constexpr Reply at(std::size_t state, std::size_t event) const { return cells[state][event]; }
  template <class E>
  constexpr Reply answer(const State& state) const {
    return cells[state.index()][kEventIndex<E>];
  }
};

namespace table_detail {

inline constexpr Reply kA = Reply::kAccepted;
inline constexpr Reply kI = Reply::kIgnored;
inline constexpr Reply kR = Reply::kRejected;

// A row is exactly as long as there are events, else this does not compile.
template <class... Cells>
consteval TransitionTable::Row row(Cells... cells) {
  static_assert(sizeof...(Cells) == kEventNames.size(), "a cell of this state's row is missing");
  return {cells...};
}

template <class... Rows>
consteval TransitionTable table(Rows... rows) {
  static_assert(sizeof...(Rows) == kStateNames.size(), "a state's row is missing");
  return {{rows...}};
}

}  // namespace table_detail

// Columns: the order of `Events`.
// clang-format off
inline constexpr TransitionTable kTable = [] {
  using namespace table_detail;
  return table(
    /* Queued     */ row(kA, kA, kR, kR, kR, kR, kR, kR, kR, kR, kR, kR, kR, kR, kI, kR, kR, kR, kR, kR, kA, kA, kR),
    /* Fetching   */ row(kR, kR, kA, kA, kA, kR, kR, kR, kR, kR, kR, kR, kR, kR, kI, kR, kR, kA, kR, kR, kA, kA, kR),
    /* Prefilling */ row(kR, kR, kR, kI, kI, kA, kA, kA, kR, kR, kA, kR, kR, kR, kI, kR, kR, kA, kR, kR, kA, kA, kR),
    /* Prefilled  */ row(kR, kR, kR, kI, kI, kR, kR, kR, kR, kR, kR, kR, kR, kR, kA, kR, kR, kR, kA, kA, kI, kA, kR),
    /* Decoding   */ row(kR, kR, kR, kI, kI, kR, kR, kR, kA, kA, kA, kA, kR, kR, kA, kR, kR, kA, kR, kR, kA, kA, kR),
    /* Parked     */ row(kR, kR, kI, kI, kI, kR, kR, kR, kI, kR, kR, kR, kR, kA, kA, kA, kA, kR, kR, kR, kI, kA, kR),
    /* Retracted  */ row(kA, kA, kR, kI, kI, kR, kR, kR, kI, kR, kR, kR, kR, kR, kI, kR, kR, kR, kR, kR, kA, kA, kR),
    /* Draining   */ row(kR, kR, kI, kA, kA, kI, kI, kI, kI, kI, kI, kI, kA, kI, kI, kR, kR, kR, kI, kI, kI, kA, kA),
    /* Finished   */ row(kR, kR, kI, kI, kI, kI, kI, kI, kI, kI, kI, kI, kI, kI, kI, kI, kI, kR, kI, kI, kI, kI, kR));
}();
// clang-format on

namespace table_detail {

template <std::size_t S, std::size_t E>
consteval bool cell_matches() {
  using StateType = std::variant_alternative_t<S, State>;
  using EventType = std::tuple_element_t<E, Events>;
  return Takes<StateType, EventType> == (kTable.at(S, E) == kA);
}

template <std::size_t S, std::size_t... E>
consteval bool row_matches(std::index_sequence<E...>) {
  return (cell_matches<S, E>() && ...);
}

template <std::size_t... S>
consteval bool table_matches(std::index_sequence<S...>) {
  return (row_matches<S>(std::make_index_sequence<kEventNames.size()>{}) && ...);
}

static_assert(table_matches(std::make_index_sequence<kStateNames.size()>{}),
              "the table and the transitions of the state types differ");

// Where an accepted event leads, read off the transition's own return type.
template <std::size_t S, std::size_t E>
consteval std::size_t target() {
  using StateType = std::variant_alternative_t<S, State>;
  using EventType = std::tuple_element_t<E, Events>;
  if constexpr (Stays<StateType, EventType>) {
    return S;
  } else if constexpr (Leaves<StateType, EventType>) {
    return kStateIndex<decltype(std::declval<StateType>().on(std::declval<EventType>()))>;
  } else {
    return kStateNames.size();
  }
}

template <std::size_t S, std::size_t... E>
consteval std::array<std::size_t, sizeof...(E)> target_row(std::index_sequence<E...>) {
  return {target<S, E>()...};
}

template <std::size_t... S>
consteval auto targets(std::index_sequence<S...>) {
  return std::array{target_row<S>(std::make_index_sequence<kEventNames.size()>{})...};
}

}  // namespace table_detail

// [state][event]: index of the state that an accepted event leads to; kStateNames.size() otherwise.
inline constexpr auto kTargets =
    table_detail::targets(std::make_index_sequence<kStateNames.size()>{});

}  // namespace baton

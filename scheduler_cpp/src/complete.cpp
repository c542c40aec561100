// What a step did: tokens appended, full pages sealed, requests finished or handed out.
#include <algorithm>

#include "lifecycle.h"

namespace baton {

// ---------------------------------------------------------------- refusals

std::optional<Misuse> Scheduler::refuse(const Step& step) const {
  if (step.spent()) return Misuse::kSpent;
  if (step.home_ != this) return Misuse::kForeign;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    if (steps_.at(i).sequence != step.sequence_) continue;
    return i == 0 ? std::nullopt : std::optional(Misuse::kOrder);
  }
  // A step without rows is over as soon as the next one is planned.
  if (step.sequence_ != plans_ || !step.plan().rows.empty()) return Misuse::kSpent;
  return std::nullopt;
}

std::optional<Refusal> Scheduler::refuse(const Plan& plan, std::span<const Token> tokens,
                                         std::span<const std::uint8_t> flags,
                                         std::span<const std::int32_t> accepted) const {
  const std::size_t rows = plan.sampling_rows;
  if (flags.size() != rows) return Refusal{Misuse::kFlagCount};
  if (!accepted.empty() && accepted.size() != rows) return Refusal{Misuse::kAcceptedCount};
  std::size_t row = 0, at = 0;
  const auto none = std::span<const RowClaim>();
  for (const RowClaim& claim : plan.rows.empty() ? none : std::span(steps_.oldest().rows)) {
    if (!claim.samples()) continue;
    if (flags[row] > static_cast<std::uint8_t>(RowFlag::kPoisoned)) {
      return Refusal{Misuse::kFlag, row};
    }
    const std::int32_t count = accepted.empty() ? 1 : accepted[row];
    if (count < 1 || static_cast<std::uint32_t>(count) > claim.drafted() + 1) {
      return Refusal{Misuse::kAccepted, row};
    }
    const std::size_t end = at + static_cast<std::size_t>(count);
    if (end > tokens.size()) return Refusal{Misuse::kTokenCount};
    const bool poisoned = flags[row] == static_cast<std::uint8_t>(RowFlag::kPoisoned);
    const Sequence* sequence = claim.drafted() ? claim.record().sequence() : nullptr;
    for (std::size_t i = at; i < end && !poisoned; ++i) {
      if (tokens[i] < 0) return Refusal{Misuse::kToken, row};
      const bool fed = i + 1 < end;  // what is fed must have been the guess
      if (fed && sequence && sequence->draft[i - at] != tokens[i]) {
        return Refusal{Misuse::kNotDrafted, row};
      }
    }
    at = end;
    ++row;
  }
  if (at != tokens.size()) return Refusal{Misuse::kTokenCount};
  return std::nullopt;
}

// ---------------------------------------------------------------- completion

std::variant<const Completion*, Refusal> Scheduler::complete(
    Step& step, std::span<const Token> tokens, std::span<const std::uint8_t> flags, Micros now,
    std::span<const std::int32_t> accepted) {
  if (const auto misuse = refuse(step)) return Refusal{*misuse};
  const Plan& plan = step.plan();
  if (!plan.rows.empty() && steps_.oldest().is_void) return Refusal{Misuse::kVoid};
  if (const auto refusal = refuse(plan, tokens, flags, accepted)) return *refusal;
  at_least(now);
  completion_.clear();
  const Step spent = std::move(step);
  if (plan.rows.empty()) return &completion_;

  name_full_pages(steps_.oldest());
  std::size_t sample = 0;
  for (RowClaim& claim : steps_.oldest().rows) {
    const bool samples = claim.samples();
    const std::uint32_t computed = claim.tokens();
    const RowFlag flag = samples ? static_cast<RowFlag>(flags[sample]) : RowFlag::kGoOn;
    const std::size_t count = !samples ? 0 : accepted.empty() ? 1 : accepted[sample];
    const std::span<const Token> sampled = tokens.first(count);
    tokens = tokens.subspan(count);
    sample += samples;
    Record& record = std::move(claim).settle();
    if (record.is<Draining>()) {
      settle(record);
    } else if (record.is<Decoding>()) {
      complete_decode(record, sampled, flag);
    } else if (samples) {
      complete_prompt(record, computed, sampled[0], flag);
    } else {
      complete_chunk(record, computed);
    }
  }
  land();
  return &completion_;
}

// Nothing of the oldest step runs any more.
void Scheduler::land() {
  for (RowClaim& source : steps_.oldest().sources) {
    Record& record = std::move(source).settle();
    if (record.is<Draining>()) settle(record);
  }
  steps_.land();
}

std::optional<Misuse> Scheduler::abandon(Step& step) {
  if (const auto misuse = refuse(step)) return *misuse;
  const Step spent = std::move(step);
  if (spent.plan().rows.empty()) return std::nullopt;
  for (std::size_t i = 1; i < steps_.size(); ++i) steps_.at(i).is_void = true;
  for (RowClaim& claim : steps_.oldest().rows) {
    Record& record = std::move(claim).settle();
    if (record.is<Draining>()) {
      settle(record);
    } else if (snapshot_interval_ && !states_survive(record)) {
      retract_running(record);
    }
  }
  land();
  return std::nullopt;
}

// A row that did not happen may still have written. Pages are written again; a state that was
// written in place is lost, and its request starts again from its last snapshot.
bool Scheduler::states_survive(Record& record) {
  const bool decodes = record.is<Decoding>();
  SideTables& sides = decodes ? record.as<Decoding>().sides() : record.as<Prefilling>().sides();
  const std::size_t context =
      decodes ? record.as<Decoding>().computed() : record.as<Prefilling>().computed();
  bool survive = true;
  for (StatePages& state : sides.states) survive &= state.survives(context);
  return survive;
}

void Scheduler::complete_decode(Record& record, std::span<const Token> tokens, RowFlag flag) {
  if (flag == RowFlag::kPoisoned) return poison(record);
  Decoding& decoding = record.as<Decoding>();
  for (const Token token : tokens) decoding.on(TokenSampled{token});
  generated_tokens_ += tokens.size();
  if (decoding.can_seal()) seal_full_pages<Decoding>(record);
  if (!side_pools_.empty()) {
    advance_sides(record, decoding.sides(), decoding.slot(), decoding.sequence(),
                  decoding.computed());
  }
  stop_if_over(record, flag);
}

void Scheduler::complete_chunk(Record& record, std::uint32_t tokens) {
  Prefilling& prefilling = record.as<Prefilling>();
  prefilling.on(ChunkComputed{tokens});
  computed_tokens_ += tokens;
  seal_full_pages<Prefilling>(record);
  if (!side_pools_.empty()) {
    advance_sides(record, prefilling.sides(), prefilling.slot(), prefilling.sequence(),
                  prefilling.computed());
  }
}

void Scheduler::complete_prompt(Record& record, std::uint32_t tokens, Token token, RowFlag flag) {
  if (flag == RowFlag::kPoisoned) return poison(record);
  complete_chunk(record, tokens);
  ++generated_tokens_;
  Prefilling& prefilling = record.as<Prefilling>();
  if (prefilling.sequence().goal != Goal::kHandOver) {
    become(record, std::move(prefilling).on(PromptComputed{token}));
    return stop_if_over(record, flag);
  }
  const SlotId slot = prefilling.slot();
  running_.remove(record);
  become(record, std::move(prefilling).on(PromptHandedOut{token, now_ + config_.hold_us}));
  prefilled_.push_back(record);
  completion_.prefilled_requests.push_back(record.id);
  Prefilled& prefilled = record.as<Prefilled>();
  seal_side_tails(record, prefilled.sides(), prefilled.sequence());
  if (prefilled.pages().owned() == 0) return;
  const std::size_t index = prefilled.pages().sealed();
  const PageId after = prefilled.seal_tail();
  report_sealed(record, slot, index, after, after, prefilled.sequence().prompt_tail_identity());
}

void Scheduler::stop_if_over(Record& record, RowFlag flag) {
  const Sequence& sequence = record.as<Decoding>().sequence();
  const bool finish = flag == RowFlag::kFinish;
  if (!finish && sequence.generated() < sequence.max_new_tokens) return;
  end_turn(record, finish ? FinishReason::kFlag : FinishReason::kLength,
           completion_.finished_requests, completion_.finished_reasons);
}

// Its logits were not numbers: what it computed is suspect, so no page that only it uses is found
// again, and nothing of this step is sealed.
void Scheduler::poison(Record& record) {
  const PageTable& pages =
      record.is<Decoding>() ? record.as<Decoding>().pages() : record.as<Prefilling>().pages();
  for (std::size_t i = 0; i < pages.sealed(); ++i) forget(pages.sealed_page(i));
  forget_sides(pages.sides());
  if (record.is<Decoding>()) {
    stop<Decoding>(record, FinishReason::kPoisoned, completion_.finished_requests,
                   completion_.finished_reasons);
  } else {
    stop<Prefilling>(record, FinishReason::kPoisoned, completion_.finished_requests,
                     completion_.finished_reasons);
  }
}

void Scheduler::forget(const SealedPage& page) {
  if (config_.host_pages > 0) host_.forget_unread(pool_.identity(page));
  pool_.forget_unshared(page);
}

// ---------------------------------------------------------------- sealing

// Where a page's tokens, its name and the index's entry for it lie is far apart, and the more so
// the longer the contexts. So all pages that this step fills are looked up together, before the
// first one is sealed: memory answers them at the same time, not one by one.
void Scheduler::name_full_pages(const Flight& flight) {
  const auto for_each = [&flight](auto&& act) {
    for (const std::uint32_t row : flight.filling) {
      const State& state = flight.rows[row].record().state;
      const auto* decoding = std::get_if<Decoding>(&state);
      if (decoding && decoding->fills_page(0)) act(*decoding);
    }
  };
  for_each([](const Decoding& decoding) { decoding.prefetch_naming(); });
  for_each([](const Decoding& decoding) { (void)decoding.name_next(); });
  for_each([](const Decoding& decoding) { decoding.prefetch_seal(); });
}

template <class S>
void Scheduler::seal_full_pages(Record& record) {
  S& state = record.as<S>();
  while (state.can_seal()) {
    const std::size_t index = state.pages().sealed();
    const PageId before = state.pages()[index];
    const PageId after = state.seal_next(record.claims() > 0);
    report_sealed(record, state.slot(), index, before, after, state.sequence().identity(index));
  }
}

void Scheduler::note_sealed(const Record& record, std::size_t group, std::size_t index, PageId page,
                            const Digest& identity) {
  completion_.sealed_pages.push_back(raw(page));
  completion_.sealed_hashes.push_back(identity);
  completion_.sealed_requests.push_back(record.id);
  completion_.sealed_indices.push_back(static_cast<std::int32_t>(index));
  completion_.sealed_groups.push_back(static_cast<std::int32_t>(group));
}

void Scheduler::report_sealed(Record& record, SlotId slot, std::size_t index, PageId before,
                              PageId after, const Digest& identity) {
  note_sealed(record, 0, index, after, identity);
  if (before != after) {
    next_.page_deltas.push_back({raw(slot), static_cast<std::int32_t>(index), raw(after)});
  }
}

}  // namespace baton

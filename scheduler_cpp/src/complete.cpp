// What a step did: tokens appended, full pages sealed, requests finished or handed out.
#include <algorithm>

#include "lifecycle.h"

namespace baton {

// ---------------------------------------------------------------- refusals

std::optional<Misuse> Scheduler::refuse(const Step& step) const {
  if (step.spent()) return Misuse::kSpent;
  if (step.home_ != this) return Misuse::kForeign;
  const bool has_rows = !steps_.empty() && steps_.oldest().sequence == step.sequence_;
  // A step without rows is over as soon as the next one is planned.
  if (!has_rows && (step.sequence_ != plans_ || !current_.rows.empty())) return Misuse::kSpent;
  return std::nullopt;
}

std::optional<Misuse> Scheduler::refuse(std::span<const Token> tokens,
                                        std::span<const std::uint8_t> flags) const {
  if (tokens.size() != current_.sampling_rows) return Misuse::kTokenCount;
  if (flags.size() != current_.sampling_rows) return Misuse::kFlagCount;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (flags[i] > static_cast<std::uint8_t>(RowFlag::kPoisoned)) return Misuse::kFlag;
    if (tokens[i] < 0 && flags[i] != static_cast<std::uint8_t>(RowFlag::kPoisoned)) {
      return Misuse::kToken;
    }
  }
  return std::nullopt;
}

// ---------------------------------------------------------------- completion

std::variant<const Completion*, Misuse> Scheduler::complete(Step& step,
                                                            std::span<const Token> tokens,
                                                            std::span<const std::uint8_t> flags,
                                                            Micros now) {
  if (const auto misuse = refuse(step)) return *misuse;
  if (const auto misuse = refuse(tokens, flags)) return *misuse;
  at_least(now);
  completion_.clear();
  const Step spent = std::move(step);
  if (current_.rows.empty()) return &completion_;

  std::size_t sample = 0;
  for (RowClaim& claim : steps_.oldest().rows) {
    const bool samples = claim.samples();
    const std::uint32_t computed = claim.tokens();
    const Token token = samples ? tokens[sample] : -1;
    const RowFlag flag = samples ? static_cast<RowFlag>(flags[sample]) : RowFlag::kGoOn;
    sample += samples;
    Record& record = std::move(claim).settle();
    if (record.is<Draining>()) {
      settle(record);
    } else if (record.is<Decoding>()) {
      complete_decode(record, token, flag);
    } else if (samples) {
      complete_prompt(record, computed, token, flag);
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
  if (current_.rows.empty()) return std::nullopt;
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

void Scheduler::complete_decode(Record& record, Token token, RowFlag flag) {
  if (flag == RowFlag::kPoisoned) return poison(record);
  Decoding& decoding = record.as<Decoding>();
  decoding.on(TokenSampled{token});
  ++generated_tokens_;
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
  for (std::size_t i = 0; i < pages.sealed(); ++i) pool_.forget_unshared(pages.sealed_page(i));
  forget_sides(pages.sides());
  if (record.is<Decoding>()) {
    stop<Decoding>(record, FinishReason::kPoisoned, completion_.finished_requests,
                   completion_.finished_reasons);
  } else {
    stop<Prefilling>(record, FinishReason::kPoisoned, completion_.finished_requests,
                     completion_.finished_reasons);
  }
}

// ---------------------------------------------------------------- sealing

template <class S>
void Scheduler::seal_full_pages(Record& record) {
  S& state = record.as<S>();
  while (state.can_seal()) {
    const std::size_t index = state.pages().sealed();
    const PageId before = state.pages()[index];
    const PageId after = state.seal_next();
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

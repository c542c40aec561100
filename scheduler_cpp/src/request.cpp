#include "baton/request.h"

#include <algorithm>

namespace baton {

// ---------------------------------------------------------------- Queued

Fetching Queued::on(AdmittedToFetch&& event) && {
  return Fetching(std::move(sequence_), std::move(event));
}

Prefilling Queued::on(AdmittedToCompute&& event) && {
  const std::size_t computed = event.pages.sealed() * sequence_->page_size + event.copied_tokens;
  return Prefilling(std::move(sequence_), std::move(event.slot), std::move(event.pages), computed);
}

Finished Queued::on(DeadlinePassed) && {
  return std::move(*this).on(Cancelled{});
}

Finished Queued::on(Cancelled) && {
  const SequencePtr over = std::move(sequence_);
  return Finished();
}

// ---------------------------------------------------------------- Fetching

Prefilling Fetching::on(FetchGaveUp) && {
  // The last token is always computed: its logits are wanted.
  const std::size_t computed = std::min(here(), sequence_->tokens.size() - 1);
  pages_.sides().expect_nothing();
  return Prefilling(std::move(sequence_), std::move(slot_), std::move(pages_), computed);
}

Decoding Fetching::on(FetchCompleted event) && {
  pages_.sides().expect_nothing();
  return Decoding(std::move(sequence_), std::move(slot_), std::move(pages_), event.first_token);
}

Retracted Fetching::on(Retract) && {
  Fetching over = std::move(*this);
  return Retracted(std::move(over.sequence_));
}

Draining Fetching::on(DeadlinePassed) && {
  return std::move(*this).on(Cancelled{});
}

Draining Fetching::on(Cancelled) && {
  const SequencePtr over = std::move(sequence_);
  return Draining(std::move(slot_), std::move(pages_), std::move(ticket_));
}

// ---------------------------------------------------------------- Prefilling

Decoding Prefilling::on(PromptComputed event) && {
  return Decoding(std::move(sequence_), std::move(slot_), std::move(pages_), event.token);
}

Prefilled Prefilling::on(PromptHandedOut event) && {
  const Slot over = std::move(slot_);
  sequence_->tokens.push_back(event.token);
  return Prefilled(std::move(sequence_), std::move(pages_), event.hold_deadline);
}

Draining Prefilling::on(Stopped) && {
  const SequencePtr over = std::move(sequence_);
  return Draining(std::move(slot_), std::move(pages_), std::nullopt);
}

Retracted Prefilling::on(Retract) && {
  Prefilling over = std::move(*this);
  return Retracted(std::move(over.sequence_));
}

Draining Prefilling::on(DeadlinePassed) && {
  return std::move(*this).on(Cancelled{});
}

Draining Prefilling::on(Cancelled) && {
  const SequencePtr over = std::move(sequence_);
  return Draining(std::move(slot_), std::move(pages_), std::nullopt);
}

// ---------------------------------------------------------------- Prefilled

namespace {
void let_go(SequencePtr&& sequence, PageTable&& pages) {
  const SequencePtr over = std::move(sequence);
  const PageTable given_back = std::move(pages);
}
}  // namespace

Finished Prefilled::on(HandedOver) && {
  let_go(std::move(sequence_), std::move(pages_));
  return Finished();
}

Finished Prefilled::on(HoldExpired) && {
  let_go(std::move(sequence_), std::move(pages_));
  return Finished();
}

Finished Prefilled::on(Cancelled) && {
  let_go(std::move(sequence_), std::move(pages_));
  return Finished();
}

// ---------------------------------------------------------------- Decoding

Draining Decoding::on(Stopped) && {
  const SequencePtr over = std::move(sequence_);
  return Draining(std::move(slot_), std::move(pages_), std::nullopt);
}

Draining Decoding::on(TurnParked event) && {
  return Draining(std::move(slot_), std::move(pages_), std::move(sequence_), event.deadline);
}

Retracted Decoding::on(Retract) && {
  Decoding over = std::move(*this);
  return Retracted(std::move(over.sequence_));
}

Draining Decoding::on(DeadlinePassed) && {
  return std::move(*this).on(Cancelled{});
}

Draining Decoding::on(Cancelled) && {
  const SequencePtr over = std::move(sequence_);
  return Draining(std::move(slot_), std::move(pages_), std::nullopt);
}

// ---------------------------------------------------------------- Parked

Finished Parked::on(Resumed) && {
  let_go(std::move(sequence_), std::move(pages_));
  return Finished();
}

Finished Parked::on(Demoted) && {
  let_go(std::move(sequence_), std::move(pages_));
  return Finished();
}

Finished Parked::on(Cancelled) && {
  let_go(std::move(sequence_), std::move(pages_));
  return Finished();
}

// ---------------------------------------------------------------- Retracted, Draining

Fetching Retracted::on(AdmittedToFetch&& event) && {
  return Fetching(std::move(sequence_), std::move(event));
}

Prefilling Retracted::on(AdmittedToCompute&& event) && {
  const std::size_t computed = event.pages.sealed() * sequence_->page_size + event.copied_tokens;
  return Prefilling(std::move(sequence_), std::move(event.slot), std::move(event.pages), computed);
}

Finished Retracted::on(DeadlinePassed) && {
  return std::move(*this).on(Cancelled{});
}

Finished Retracted::on(Cancelled) && {
  const SequencePtr over = std::move(sequence_);
  return Finished();
}

Finished Draining::on(Settled) && {
  const Draining over = std::move(*this);
  return Finished();
}

Parked Draining::on(ParkSettled) && {
  const Slot over = std::move(slot_);
  // Its last token was never fed back. Pages behind those that hold something are not kept.
  const std::size_t written = parking_->tokens.size() - 1;
  pages_.shrink_to(pages_for(written, parking_->page_size));
  while (pages_.owned() > 0) pages_.freeze_next();
  pages_.sides().freeze(written, parking_->page_size);
  return Parked(std::move(parking_), std::move(pages_), park_deadline_);
}

}  // namespace baton

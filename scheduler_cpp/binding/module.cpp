#include <nanobind/nanobind.h>

#include "bindings.h"

NB_MODULE(_core, m) {
  m.doc() = "Baton's scheduler core.";
  baton::binding::bind_records(m);
  baton::binding::bind_scheduler(m);
}

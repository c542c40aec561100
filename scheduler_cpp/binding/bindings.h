// The parts of the module, in the order in which they are registered.
#pragma once

#include <nanobind/nanobind.h>

namespace baton::binding {

namespace nb = nanobind;

void bind_records(nb::module_& m);
void bind_scheduler(nb::module_& m);

}  // namespace baton::binding

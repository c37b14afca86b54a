// Which variants this library holds and this processor runs.
#pragma once

#include "abi.h"

namespace awqkit {

bool isa_supported(Isa isa);

}  // namespace awqkit

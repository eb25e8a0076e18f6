/* The header stands alone, may be included twice, and has what it says. Compiled
 * as C99, C11 and C++17 with every warning an error. */
/* clang-format would take the second away. */
/* clang-format off */
#include "kvferry.h"
#include "kvferry.h"
/* clang-format on */

int main(void) {
  kvf_agent_options agent = kvf_agent_options_default();
  kvf_transfer_options transfer = kvf_transfer_options_default();
  kvf_side_channel_options channel = kvf_side_channel_options_default();
  return (int)(agent.struct_size + transfer.struct_size + channel.struct_size) - (88 + 40 + 48);
}

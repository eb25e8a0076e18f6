/* Telemetry, cost and query: figures where the transport has them, a clear status where not.
 * argv[1]: transport. */
#include "fixture.h"

int main(int argc, char** argv) {
  const char* transport = transport_of(argc, argv);
  pool p = pool_new(65536, 4);
  for (int with = 0; with < 2; with++) {
    kvf_agent_options options = agent_options(transport, "telemetry");
    options.telemetry = (uint8_t)with;
    kvf_agent agent;
    CHECK_OK(kvf_agent_create(&options, &agent));
    pool_register(agent, &p);
    kvf_desc_list local = blocks_of(agent, NULL, &p);
    kvf_desc_list remote = blocks_of(agent, "telemetry", &p);
    const int32_t to[] = {0, 1}, from[] = {2, 3};
    kvf_transfer t;
    CHECK_OK(kvf_transfer_make(agent, KVF_OP_READ, local, to, 2, remote, from, 2, NULL, &t));
    kvf_transfer_telemetry figures = {0};
    kvf_transfer_cost cost = {0};
    kvf_status status = kvf_transfer_cost_estimate(t, &cost);
    CHECK(status == KVF_OK || status == KVF_ERR_NOT_SUPPORTED);
    if (status == KVF_OK) CHECK(cost.duration_us >= 0);
    post_and_wait(t);
    status = kvf_transfer_telemetry_get(t, &figures);
    if (!with) {
      CHECK_EQ(status, KVF_ERR_NO_TELEMETRY);
    } else if (!is_transport(transport, "test")) {
      CHECK_EQ(status, KVF_OK);
      CHECK_EQ(figures.total_bytes, 2 * p.block);
      CHECK(figures.descriptors == 1 || figures.descriptors == 2);
      CHECK(figures.start_time_us > 0);
    }
    CHECK_OK(kvf_agent_destroy(agent));
  }
  pool_free(&p);
  return 0;
}

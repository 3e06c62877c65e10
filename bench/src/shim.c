/* What of MPI exists only as a C macro, and one question to its tools interface. */
#include <mpi.h>
#include <string.h>

void *kolo_bench_in_place(void) { return MPI_IN_PLACE; }

/* Whether Open MPI gives up the core while it waits: 1 yes, 0 no, -1 this MPI does not say.
 * The control variable holds the value in force, from wherever it came: command line, environment, file, or
 * mpirun's own knowledge that it placed more ranks than cores. */
int kolo_bench_yields(void)
{
    int provided, index, count, result = -1;
    MPI_T_cvar_handle handle;
    unsigned char value[64];

    if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS)
        return -1;
    memset(value, 0, sizeof value);
    if (MPI_T_cvar_get_index("mpi_yield_when_idle", &index) == MPI_SUCCESS
        && MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) == MPI_SUCCESS) {
        /* A bool or an int, by version: either is non-zero in some byte when it is set. */
        if (count == 1 && MPI_T_cvar_read(handle, value) == MPI_SUCCESS) {
            size_t i;
            result = 0;
            for (i = 0; i < sizeof value; i++)
                if (value[i] != 0)
                    result = 1;
        }
        MPI_T_cvar_handle_free(&handle);
    }
    MPI_T_finalize();
    return result;
}

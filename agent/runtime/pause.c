/* Stands in for an image's entrypoint while Docker makes the image's OCI specification: it needs nothing of the image,
   not even a C library, and does nothing until it is killed. */
#include <unistd.h>

int main(void) {
  for (;;)
    pause();
}

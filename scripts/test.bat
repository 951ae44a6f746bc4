@echo off
rem Lint and all tests, on the CPU, in an environment of the project's own. Further arguments go to pytest, which runs
rem in the project's folder: scripts\test.bat tests\test_losses.py
setlocal
call "%~dp0setup_env.bat" "%~dp0..\tests\requirements.txt"
if %ERRORLEVEL% neq 0 exit /b 1
cd /d "%PROJECT%"
call "%PY%" -m ruff check .
if %ERRORLEVEL% neq 0 exit /b 1
rem an empty value would unset the variable in cmd.exe; -1 names no GPU
set CUDA_VISIBLE_DEVICES=-1
rem two processes, a thread each: more threads than cores would wait for one another
rem each takes half of the tests in order, so that what a file's tests share is made once; who ends first helps
set OMP_NUM_THREADS=1
call "%PY%" -m pytest -n 2 --dist worksteal %*
exit /b %ERRORLEVEL%
